"""The strategy that the configuration names, wrapped by FedWSA where it asks for it."""

from __future__ import annotations

import inspect

from flwr.serverapp.strategy import Strategy
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedwsa.components import ConfigError, build, locate
from fedwsa.config import Config, Wsa
from fedwsa.scope import WeightScope
from fedwsa.strategies.fedwsa import FedWSA


def build_strategy(config: Config) -> Strategy:
    """Make the strategy of a run.

    Sampling arguments of Flower's strategies follow from ``clients``; ``strategy.args`` may
    set any of them otherwise.

    Raises
    ------
    ConfigError
        If the path, an argument or the target scope is wrong.
    """
    sampling = {
        "fraction_train": config.clients.fraction,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": config.clients.count,
    }
    component = config.strategy.component
    accepted = inspect.signature(locate(component.target, "strategy")).parameters
    known = {k: v for k, v in sampling.items() if k in accepted}
    complete = component.model_copy(update={**known, **config.strategy.args})
    strategy = build(complete, "strategy.args")
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"strategy._target_: {component.target} is no Flower Strategy")
    return _aligned(strategy, config.wsa) if config.wsa.enabled else strategy


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
