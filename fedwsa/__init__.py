"""Federated learning with weight scope alignment, as plug-ins for Flower.

The owner of an existing Flower app needs two names: :class:`FedWSA` wraps the strategy of the
server, :class:`ScopeAlignment` joins the training loop of the client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedwsa.objectives.scope import ScopeAlignment as ScopeAlignment
    from fedwsa.scope import WeightScope as WeightScope
    from fedwsa.strategies.fedwsa import FedWSA as FedWSA

_HOMES = {
    "FedWSA": "fedwsa.strategies.fedwsa",
    "ScopeAlignment": "fedwsa.objectives.scope",
    "WeightScope": "fedwsa.scope",
}
__all__ = ["FedWSA", "ScopeAlignment", "WeightScope"]


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that the methods stay usable without Flower's two seconds.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fedwsa' has no attribute {name!r}")
