"""Simulate any Flower app on Ray: Flower's own interface, a faster engine behind it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedwsa.simulation.cluster import SimulationError as SimulationError
    from fedwsa.simulation.cohort import CohortApp as CohortApp
    from fedwsa.simulation.cohort import CohortReply as CohortReply
    from fedwsa.simulation.run import run_simulation as run_simulation

_HOMES = {
    "CohortApp": "fedwsa.simulation.cohort",
    "CohortReply": "fedwsa.simulation.cohort",
    "SimulationError": "fedwsa.simulation.cluster",
    "run_simulation": "fedwsa.simulation.run",
}
__all__ = ["CohortApp", "CohortReply", "SimulationError", "run_simulation"]


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that Ray can be started before Flower and torch are imported.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fedwsa.simulation' has no attribute {name!r}")
