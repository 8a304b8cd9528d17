"""Simulate any Flower app on Ray: Flower's own interface, a faster engine behind it."""

from fedwsa.simulation.cohort import CohortApp
from fedwsa.simulation.run import SimulationError, run_simulation

__all__ = ["CohortApp", "SimulationError", "run_simulation"]
