"""Which local objectives there are: ours, and those that a run names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedwsa.algorithms.feddyn.client import FedDyn
from fedwsa.algorithms.fednova.client import FedNova
from fedwsa.algorithms.fedprox.client import Proximal
from fedwsa.algorithms.moon.client import Moon
from fedwsa.algorithms.objective import Objective
from fedwsa.algorithms.oneshot.client import FisherInformation
from fedwsa.algorithms.personal.client import OwnPart
from fedwsa.algorithms.scaffold.client import Scaffold
from fedwsa.algorithms.sizes.client import HeldClasses, Scaler
from fedwsa.algorithms.wsa.client import ScopeAlignment
from fedwsa.config.component import ConfigError, locate

OBJECTIVES: tuple[type[Objective], ...] = (
    HeldClasses,
    Scaler,
    OwnPart,
    FisherInformation,
    ScopeAlignment,
    Proximal,
    Scaffold,
    FedDyn,
    FedNova,
    Moon,
)
"""In the order in which they act, where the server's message asks for them."""

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
            wanted = f"{Objective.__module__}.{Objective.__qualname__}"
            raise ConfigError(f"{_KEY}: {path} is no subclass of {wanted}")
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
