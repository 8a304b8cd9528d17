"""Federated learning with weight scope alignment, as plug-ins for Flower.

The owner of an existing Flower app needs two names: :class:`FedWSA` wraps the strategy of the
server, :class:`ScopeAlignment` joins the training loop of the client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedwsa.algorithms.wsa.client import ScopeAlignment as ScopeAlignment
    from fedwsa.algorithms.wsa.server import FedWSA as FedWSA
    from fedwsa.scope.weight_scope import WeightScope as WeightScope

_HOMES = {
    "FedWSA": "fedwsa.algorithms.wsa.server",
    "ScopeAlignment": "fedwsa.algorithms.wsa.client",
    "WeightScope": "fedwsa.scope.weight_scope",
}
__all__ = ["FedWSA", "ScopeAlignment", "WeightScope"]


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that the methods stay usable without Flower's two seconds.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fedwsa' has no attribute {name!r}")
