"""Whether a target scope fits the model, and local steps can follow it."""

from __future__ import annotations

import logging

from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.config.component import ConfigError
from fedwsa.fleet.size_rules import WHOLE
from fedwsa.models import exchange
from fedwsa.schema.config import Config
from fedwsa.scope.weight_scope import WeightScope, fan_in, scoped_layers, stability
from server.sizes import SizedModels

logger = logging.getLogger("fedwsa")


def check_alignment(config: Config, strategy: FedWSA, sizes: SizedModels, largest: str) -> None:
    """Refuse layers that do not exist; warn of a strength that local steps cannot follow.

    Raises
    ------
    ConfigError
        If ``wsa.layers`` or the scope that is given does not fit the model of the largest size.
    """
    untrained = frozenset(sizes.untrained)
    travelling = exchange.travelling_state(sizes.models[largest])
    state = {name: tensor for name, tensor in travelling.items() if name not in untrained}
    try:
        names = scoped_layers(state, config.wsa.layers)
        scope = strategy.target or WeightScope.measure(state, config.wsa.layers)
    except ValueError as error:
        raise ConfigError(f"wsa.layers: {error}") from None
    if unknown := sorted(set(scope.names) - set(names) - untrained):
        raise ConfigError(f"wsa.scope: the file has layers that the model lacks: {unknown}")
    scope = scope.only([name for name in scope.names if name not in untrained])
    local = config.local
    lr = local.lr * max(local.lr_factors)
    ratios: dict[tuple[str, str], float] = {}
    for size, model in sizes.models.items():
        own = exchange.travelling_state(model)
        target = scope.only([name for name in scope.names if name in own])
        if strategy.normalise:
            widths = [fan_in([of[n] for n in target.names]) for of in (state, own)]
            target = target.times((widths[0] / widths[1]).sqrt())
        found = stability(own, target, strategy.strength, config.wsa.reduction, lr)
        ratios |= {(size, name): ratio for name, ratio in found.items()}
    size, name = worst = max(ratios, key=lambda key: ratios[key])
    if ratios[worst] > 1:
        logger.warning(
            "wsa.strength=%g is %.1f times what local steps can follow at layer %s%s "
            "with lr %g: training may diverge; take a smaller strength or lr",
            strategy.strength,
            ratios[worst],
            name,
            "" if size == WHOLE else f" of size {size}",
            lr,
        )
