"""The strategy that the configuration names, wrapped by FedWSA where it asks for it."""

from __future__ import annotations

import logging

from flwr.serverapp.strategy import Strategy
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedwsa.components import ConfigError, build
from fedwsa.config import Config, Wsa
from fedwsa.scope import WeightScope
from fedwsa.strategies.fedwsa import FedWSA

logger = logging.getLogger("fedwsa")


def build_strategy(config: Config) -> Strategy:
    """Make the strategy of a run.

    The sampling of Flower's strategies follows from ``clients``; ``strategy.args`` may set any
    part of it otherwise.

    Raises
    ------
    ConfigError
        If the path, an argument or the target scope is wrong.
    """
    component = config.strategy.component
    strategy = build(component, "strategy.args")
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"strategy._target_: {component.target} is no Flower Strategy")
    _set_sampling(strategy, config)
    return _aligned(strategy, config.wsa) if config.wsa.enabled else strategy


def _set_sampling(strategy: Strategy, config: Config) -> None:
    """Set the attributes by which Flower's strategies sample, whatever their constructor takes.

    Raises
    ------
    ConfigError
        If nobody would be sampled, or more nodes than there are: Flower waits for ever for them.
    """
    count = config.clients.count
    sampling = {
        "fraction_train": config.clients.fraction,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": count,
    }
    inner = strategy
    while isinstance(getattr(inner, "strategy", None), Strategy):  # Flower's wrappers
        inner = inner.strategy  # type: ignore[attr-defined]
    if not hasattr(inner, "fraction_train"):
        logger.warning(
            "%s samples by its own rule: clients.fraction is unused", type(inner).__name__
        )
        return
    for name, value in sampling.items():
        if name not in config.strategy.args:
            setattr(inner, name, value)
        elif name.startswith("min_") and getattr(inner, name) > count:
            raise ConfigError(f"strategy.args.{name}: there are only {count} clients")
    if not 0 < inner.fraction_train <= 1:
        raise ConfigError(
            f"strategy.args.fraction_train: must be above 0 and at most 1; "
            f"got {inner.fraction_train}"
        )


def _aligned(strategy: Strategy, wsa: Wsa) -> FedWSA:
    target = _scope_of(wsa) if wsa.target == "fixed" else wsa.target
    try:
        return FedWSA(
            strategy,
            strength=wsa.strength,
            fusion=wsa.fusion,
            target=target,
            align=wsa.align,
            layers=wsa.layers,
            reduction=wsa.reduction,
            floor=wsa.floor,
        )
    except ValueError as error:
        raise ConfigError(f"wsa: {error}") from None


def _scope_of(wsa: Wsa) -> WeightScope:
    try:
        return WeightScope.measure(load_file(str(wsa.scope)), wsa.layers)
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"wsa.scope: cannot use {wsa.scope}: {error}") from None
