"""What a strategy wants to know of the models: what its class declares, nothing by name."""

from __future__ import annotations

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)

from fedwsa.config.component import Component, ConfigError, asked_for, locate

FACTS = (
    "shapes",
    "axes",
    "head",
    "classifier",
    "architecture",
    "norms",
    "buffers",
    "untrained",
    "merge",
    "permutations",
    "num_sampled_clients",
)
"""What a strategy may name in ``wants`` of its class, to get it by that name."""

_FLOWER_S_PRIVACY = (
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyClientSideAdaptiveClipping,
)


def wants_of(component: Component, where: str) -> list[str]:
    """The facts that a strategy declares in ``wants`` of its class; Flower's cannot declare.

    A subclass that declares nothing of its own gets of what its parent wants what its own
    constructor takes.

    Raises
    ------
    ConfigError
        If it wants what there is not.
    """
    kind = locate(component.target, f"{where}._target_")
    if kind in _FLOWER_S_PRIVACY:
        return ["num_sampled_clients"]
    wants = getattr(kind, "wants", ())
    if not isinstance(wants, tuple) or not set(wants) <= set(FACTS):
        raise ConfigError(
            f"{where}: {component.name}.wants must be a tuple of names among {', '.join(FACTS)}; "
            f"it is {wants!r}"
        )
    return asked_for(kind, wants, where)
