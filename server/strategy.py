"""The strategy that the configuration names, wrapped by FedWSA where it asks for it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import (
    FedAvg,
    Strategy,
)
from safetensors import SafetensorError

from fedwsa.algorithms.guard.guard import Guard
from fedwsa.algorithms.objectives import own_objectives
from fedwsa.algorithms.privacy import accounted, is_private
from fedwsa.algorithms.statistics import spared
from fedwsa.algorithms.traits import Traits, traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.config.component import (
    Component,
    ConfigError,
    call,
    check_arguments,
    locate,
    signature_of,
)
from fedwsa.fleet.size_rules import WHOLE
from fedwsa.merge import Operator, needs
from fedwsa.merge.average import average
from fedwsa.models.architecture import Units
from fedwsa.models.weights import open_weights
from fedwsa.schema.config import Config
from fedwsa.schema.sections import Wsa
from fedwsa.scope.weight_scope import WeightScope
from fedwsa.wire.names import ACCURACY, LOSS, NUM_EXAMPLES, TRAIN_LOSS
from server.cohorts import leaves_it_to_the_strategy
from server.compatibility import facts_of, require_compatible, require_whole_models
from server.sizes import SizedModels

logger = logging.getLogger("fedwsa")


SIZED = (
    "heterofl",
    "fedrolex",
    "fjord",
    "depthfl",
    "scalefl",
    "wave",
    "feddf",
    "exclusive",
    "fedproto",
)
"""Strategies in ``conf/`` for clients of several sizes."""


def build_strategy(
    config: Config, sizes: SizedModels, public: Mapping[str, Any] | None = None
) -> Strategy:
    """Make the strategy of a run.

    The sampling of Flower's strategies follows from ``clients``; ``strategy.args`` may set any
    part of it otherwise.

    Parameters
    ----------
    public
        The facts that come of public examples, if there are any: what trains on them.

    Raises
    ------
    ConfigError
        If the path, an argument or the target scope is wrong, or the strategy averages models
        of one size alone where there are several.
    """
    component = config.strategy.component
    if config.clients.sizes is not None and "shapes" not in _wants(component, "strategy"):
        raise ConfigError(
            f"clients.sizes: {component.name} averages models of one size; those for several "
            f"are strategy={', '.join(SIZED)}"
        )
    cohort, operator = config.cohort, _operator(config)
    made = {"root": None, "distilled": None, **(public or {})}
    facts: dict[str, Callable[[], Any]] = {
        "shapes": lambda: sizes.shapes,
        "axes": lambda: sizes.axes,
        "exits": lambda: sizes.exits,
        "head": lambda: sizes.known.head,
        "classifier": lambda: sizes.classifier,
        "architecture": lambda: sizes.known,
        "norms": lambda: sizes.norms,
        "buffers": lambda: sizes.buffers,
        "untrained": lambda: sizes.untrained,
        "num_sampled_clients": lambda: cohort,
        "merge": lambda: operator,
        "permutations": lambda: _permutations(config, sizes),
        "root": lambda: made["root"],
        "distilled": lambda: made["distilled"],
    }
    strategy = _make(component, "strategy.args", facts)
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"strategy._target_: {component.target} is no Flower Strategy")
    _require_heard(strategy, config)
    if is_private(strategy) and not config.private:
        raise ConfigError(
            f"strategy._target_: {component.name} makes a strategy that adds noise: say "
            f"{component.name}.traits = Traits(adds_noise=True), so that clients withhold what the "
            "noise does not cover"
        )
    require_compatible(strategy, config, sizes, facts_of(config, sizes, cohort))
    _set_sampling(strategy, config)
    own_objectives(config.local.objectives)
    if config.private:
        strategy = accounted(strategy, config.privacy.delta, config.learning)
    strategy = spared(strategy, sizes.buffers)
    return _aligned(strategy, config, sizes) if config.wsa.enabled else strategy


def _require_heard(strategy: Strategy, config: Config) -> None:
    """Refuse traits that clients would not hear of; warn of what looks like traits and is none.

    Raises
    ------
    ConfigError
        Says where they must stand.
    """
    brought = [kind for part in chain(strategy) for kind in traits_of(part).objectives]
    name = config.strategy.component.name
    if set(brought) - set(config.strategy.objectives):
        raise ConfigError(
            f"strategy._target_: {name} makes a strategy that brings {brought[0].__name__}: say "
            f"{name}.traits = Traits(objectives=({brought[0].__name__},)), so that clients know"
        )
    for part in chain(strategy):
        own = vars(part).get("traits")
        said = getattr(type(part), "traits", None) if own is None else own
        if own is not None or not isinstance(said, Traits | None):
            logger.warning(
                "%s.traits means nothing: it must be a fedwsa.algorithms.traits.Traits, and stand "
                "in the class",
                type(part).__name__,
            )


def build_guard(config: Config, strategy: Strategy) -> Guard:
    """The guard around the strategy of a run.

    Raises
    ------
    ConfigError
        If the quorum is more than a cohort, or the guard does not go with the strategy.
    """
    wish, cohort = config.guard, config.cohort
    if wish.min_results > cohort:
        raise ConfigError(
            f"guard.min_results: {wish.min_results:g} are more than the {cohort} clients of a round"
        )
    try:
        return Guard(
            strategy,
            **dict(wish) | ({} if config.pace.synchronous else {"below": "skip"}),
            timeout=config.clients.timeout,
            numbers=(NUM_EXAMPLES, *([] if config.withheld else [TRAIN_LOSS])),
            scores=(LOSS, ACCURACY),
        )
    except ValueError as error:
        raise ConfigError(f"guard: {error}") from None


def _make(component: Component, where: str, facts: Mapping[str, Callable[[], Any]]) -> Any:
    """Build a strategy, and first what it wraps.

    It gets what it says that it wants to know of the models, which is found out only then.
    Arguments that are mappings with a ``_target_`` are built likewise.
    """
    wanted = _wants(component, where.removesuffix(".args"))
    given = {name: facts[name]() for name in wanted}
    for name, value in component.arguments.items():
        if isinstance(value, dict) and "_target_" in value:
            inner = _make(Component.model_validate(value), f"{where}.{name}", facts)
            require_whole_models(component, inner)
            given[name] = inner
        elif value is not None or name not in wanted:
            given[name] = value
    return call(component.target, given, where)


def _wants(component: Component, where: str) -> tuple[str, ...]:
    """The facts about the models that a strategy is given, by their names."""
    return traits_of(locate(component.target, f"{where}._target_")).wants


def _operator(config: Config) -> Operator:
    """The operator that merges the models of a one-shot run, its options bound.

    Raises
    ------
    ConfigError
        If it cannot be found, an option is wrong, it needs what there is not, or the strategy
        merges by itself.
    """
    component = config.merge
    operator = locate(component.target, "merge._target_")
    wanted = _wants(config.strategy.component, "strategy")
    if "merge" not in wanted and operator is not average:
        raise ConfigError(
            f"merge: {config.strategy.component.name} puts models together by its own rule; "
            f"{component.name} needs strategy=oneshot"
        )
    parameters = signature_of(operator, "merge").parameters
    if "weights" not in parameters:
        raise ConfigError(f"merge._target_: {component.name} takes no weights; see fedwsa.merge")
    needed = needs(operator, "merge")
    if "base_fisher" in needed:
        missing = parameters["base_fisher"]
        if missing.default is missing.empty:
            raise ConfigError(f"merge: {component.name} needs base_fisher, which nobody has here")
    options = check_arguments(operator, component.arguments, "merge", 1, {"weights", *needed})
    return functools.partial(operator, **options)


def _permutations(config: Config, sizes: SizedModels) -> Units | None:
    """Which units of the network may change places, where the operator needs to know.

    Raises
    ------
    ConfigError
        If the network does not say.
    """
    if "permutations" not in needs(locate(config.merge.target, "merge._target_"), "merge"):
        return None
    if sizes.known.units is None:
        raise ConfigError(
            f"merge: {config.merge.name} needs to know which units may change places, and "
            f"{config.model.name} does not say"
        )
    return sizes.known.units(sizes.models[WHOLE])


def _set_sampling(strategy: Strategy, config: Config) -> None:
    """Set the attributes by which Flower's strategies sample, whatever their constructor takes.

    Raises
    ------
    ConfigError
        If nobody would be sampled, or more nodes than there are: Flower waits for ever for them.
    """
    count = config.learning
    by_strategy = config.pace.synchronous and leaves_it_to_the_strategy(config)
    sampling = {
        "fraction_train": config.clients.fraction if by_strategy else 1.0,
        "fraction_evaluate": min(1.0, config.evaluation.clients_most / count),
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,  # all were awaited; who is away in a round is not waited for
    }
    *_, inner = chain(strategy)
    if not isinstance(inner, FedAvg):  # an attribute of that name may mean anything
        if not leaves_it_to_the_strategy(config):
            raise ConfigError(f"sampler: {type(inner).__name__} samples by its own rule")
        logger.warning(
            "%s samples by its own rule: clients.fraction is unused", type(inner).__name__
        )
        return
    for name, value in sampling.items():
        if name not in config.strategy.args:
            setattr(inner, name, value)
        elif name.startswith("min_") and getattr(inner, name) > count:
            raise ConfigError(f"strategy.args.{name}: there are only {count} clients to train")
        elif name.startswith("min_") and config.clients.availability != 1:
            raise ConfigError(
                f"strategy.args.{name}: with clients.availability fewer may be there, and Flower "
                "would wait for ever; leave it out"
            )
    if not 0 < inner.fraction_train <= 1:
        raise ConfigError(
            f"strategy.args.fraction_train: must be above 0 and at most 1; "
            f"got {inner.fraction_train}"
        )


def _aligned(strategy: Strategy, config: Config, sizes: SizedModels) -> FedWSA:
    wsa = config.wsa
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
            normalise=sizes.widths_differ if wsa.normalise is None else wsa.normalise,
            source=wsa.private if config.private else "reported",
            untrained=sizes.untrained,
        )
    except ValueError as error:
        raise ConfigError(f"wsa: {error}") from None


def _scope_of(wsa: Wsa) -> WeightScope:
    try:
        return WeightScope.measure(open_weights(Path(str(wsa.scope))).tensors(), wsa.layers)
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"wsa.scope: cannot use {wsa.scope}: {error}") from None
