"""Which local objectives there are: ours, and those that a run names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedwsa.components import ConfigError, locate
from fedwsa.objectives import Objective
from fedwsa.objectives.feddyn import FedDyn
from fedwsa.objectives.fednova import FedNova
from fedwsa.objectives.moon import Moon
from fedwsa.objectives.proximal import Proximal
from fedwsa.objectives.scaffold import Scaffold
from fedwsa.objectives.scope import ScopeAlignment

OBJECTIVES: tuple[type[Objective], ...] = (
    ScopeAlignment,
    Proximal,
    Scaffold,
    FedDyn,
    FedNova,
    Moon,
)
"""Each does nothing unless the server's message asks for it."""

_KEY = "local.objectives"


def own_objectives(paths: Sequence[str]) -> list[type[Objective]]:
    """Those at dotted paths.

    Raises
    ------
    ConfigError
        If there is none at a path.
    """
    found = []
    for path in paths:
        kind = locate(path, _KEY)
        if not (isinstance(kind, type) and issubclass(kind, Objective)):
            raise ConfigError(f"{_KEY}: {path} is no subclass of fedwsa.objectives.Objective")
        found.append(kind)
    return found


def require_numbers(objective: Objective, said: Mapping[str, object]) -> None:
    """Refuse metrics that a message cannot hold.

    Raises
    ------
    TypeError
        Names the objective, and the metric.
    """
    for key, value in said.items():
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, int | float) for part in parts):
            raise TypeError(
                f"{type(objective).__name__}.end(): {key} must be a number, or a list of numbers, "
                f"not {type(value).__name__}"
            )
