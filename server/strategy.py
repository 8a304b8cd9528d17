"""The strategy that the configuration names, wrapped by FedWSA where it asks for it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import (
    Bulyan,
    FedAvg,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from safetensors import SafetensorError

from fedwsa.algorithms.averaging import averages_by
from fedwsa.algorithms.guard.guard import Guard
from fedwsa.algorithms.moon.client import require_classifier
from fedwsa.algorithms.moon.server import Moon
from fedwsa.algorithms.objectives import own_objectives
from fedwsa.algorithms.oneshot import OneShot, Operator
from fedwsa.algorithms.personal.fedper import FedPer
from fedwsa.algorithms.personal.local import LocalOnly
from fedwsa.algorithms.personal.server import Personal
from fedwsa.algorithms.privacy import accounted, is_private
from fedwsa.algorithms.scaffold.server import Scaffold
from fedwsa.algorithms.sizes.fedwave import FedWave
from fedwsa.algorithms.sizes.server import SizedFedAvg
from fedwsa.algorithms.statistics import spared
from fedwsa.algorithms.wrapping import chain, declared
from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.config.blame import blaming
from fedwsa.config.component import (
    Component,
    ConfigError,
    build,
    check_arguments,
    locate,
    signature_of,
)
from fedwsa.config.schema import Config
from fedwsa.config.sections import Wsa
from fedwsa.data.own import is_own
from fedwsa.fleet.size_rules import WHOLE
from fedwsa.merge import needs
from fedwsa.merge.average import average
from fedwsa.models import blank_inputs, state
from fedwsa.models.architecture import Units
from fedwsa.models.augment import kernels
from fedwsa.models.weights import open_weights
from fedwsa.scope.weight_scope import WeightScope
from fedwsa.wire import messages
from server.sizes import SizedModels
from server.wants import wants_of

logger = logging.getLogger("fedwsa")


SIZED = ("heterofl", "fedrolex", "depthfl", "wave")
"""Strategies in ``conf/`` for clients of several sizes."""


def build_strategy(config: Config, sizes: SizedModels) -> Strategy:
    """Make the strategy of a run.

    The sampling of Flower's strategies follows from ``clients``; ``strategy.args`` may set any
    part of it otherwise.

    Raises
    ------
    ConfigError
        If the path, an argument or the target scope is wrong, or the strategy averages models
        of one size alone where there are several.
    """
    component = config.strategy.component
    if config.clients.sizes is not None and "shapes" not in wants_of(component, "strategy"):
        raise ConfigError(
            f"clients.sizes: {component.name} averages models of one size; those for several "
            f"are strategy={', '.join(SIZED)}"
        )
    cohort = max(1, int(config.clients.count * config.clients.fraction))
    facts = {
        "shapes": sizes.shapes,
        "axes": sizes.axes,
        "head": sizes.known.head,
        "classifier": sizes.classifier,
        "architecture": sizes.known,
        "norms": sizes.norms,
        "buffers": sizes.buffers,
        "untrained": sizes.untrained,
        "num_sampled_clients": cohort,
        "merge": _operator(config),
        "permutations": _permutations(config, sizes),
    }
    strategy = _make(component, "strategy.args", facts)
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"strategy._target_: {component.target} is no Flower Strategy")
    if is_private(strategy) and not config.private:
        raise ConfigError(
            f"strategy._target_: {component.name} makes a strategy that adds noise: say "
            f"{component.name}.adds_noise = True, so that clients withhold what the noise does not "
            "cover"
        )
    _check_rounds(strategy, config)
    _set_sampling(strategy, config)
    _check_optimisers(strategy, config)
    _check_majority(strategy, config, cohort)
    _check_personal(strategy, sizes)
    _check_contrast(strategy, sizes)
    _check_augmentation(strategy, config, sizes)
    _warn_of_learned(strategy, config)
    own_objectives(config.local.objectives)
    if config.private:
        _check_private(strategy, config, sizes)
        strategy = accounted(strategy, config.privacy.delta, config.clients.count)
    strategy = spared(strategy, sizes.buffers)
    return _aligned(strategy, config, sizes) if config.wsa.enabled else strategy


def build_guard(config: Config, strategy: Strategy) -> Guard:
    """The guard around the strategy of a run.

    Raises
    ------
    ConfigError
        If the quorum is more than a cohort, or the guard does not go with the strategy.
    """
    wish = config.guard
    cohort = max(1, int(config.clients.count * config.clients.fraction))
    if wish.min_results > cohort:
        raise ConfigError(
            f"guard.min_results: {wish.min_results:g} are more than the {cohort} clients of a round"
        )
    try:
        return Guard(
            strategy,
            **dict(wish),
            timeout=config.clients.timeout,
            numbers=(messages.NUM_EXAMPLES, *([] if config.withheld else [messages.TRAIN_LOSS])),
            scores=(messages.LOSS, messages.ACCURACY),
        )
    except ValueError as error:
        raise ConfigError(f"guard: {error}") from None


def _make(component: Component, where: str, facts: Mapping[str, Any]) -> Any:
    """Build a strategy, and first what it wraps.

    It gets what it says that it wants to know of the models; arguments that are mappings with a
    ``_target_`` are built likewise.
    """
    wanted = wants_of(component, where.removesuffix(".args"))
    given = {name: facts[name] for name in wanted}
    for name, value in component.arguments.items():
        if isinstance(value, dict) and "_target_" in value:
            inner = _make(Component(**value), f"{where}.{name}", facts)
            _check_wrapping(component, inner)
            given[name] = inner
        elif value is not None or name not in wanted:
            given[name] = value
    return build(Component(**{"_target_": component.target, **given}), where)


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
    wanted = wants_of(config.strategy.component, "strategy")
    if "merge" not in wanted and operator is not average:
        raise ConfigError(
            f"merge: {config.strategy.component.name} puts models together by its own rule; "
            f"{component.name} needs strategy=oneshot"
        )
    parameters = signature_of(operator, "merge").parameters
    if "weights" not in parameters:
        raise ConfigError(f"merge._target_: {component.name} takes no weights; see fedwsa.merge")
    missing = parameters.get("base_fisher")
    if missing is not None and missing.default is missing.empty:
        raise ConfigError(f"merge: {component.name} needs base_fisher, which nobody has here")
    supplied = {"weights", *needs(operator, "merge")}
    options = check_arguments(operator, component.arguments, "merge", 1, supplied)
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


def _check_rounds(strategy: Strategy, config: Config) -> None:
    """Refuse more rounds than a strategy has."""
    for part in chain(strategy):
        if isinstance(part, OneShot) and config.rounds != part.rounds:
            raise ConfigError(
                f"rounds: {type(part).__name__} trains its clients once: set rounds=1, and "
                f"local.epochs (now {config.local.epochs}) to as many as they are to train"
            )


def _check_wrapping(outer: Component, inner: object) -> None:
    """Refuse to wrap what does not exchange whole models.

    Raises
    ------
    ConfigError
        Flower's privacy wrappers compare each reply with the model that all were sent.
    """
    whole = not isinstance(inner, SizedFedAvg | Personal | Scaffold | OneShot)
    if isinstance(inner, Strategy) and not whole:
        raise ConfigError(
            f"strategy.args: {outer.name} needs clients that send one whole model, which "
            f"{type(inner).__name__} does not"
        )


def _check_augmentation(strategy: Strategy, config: Config, sizes: SizedModels) -> None:
    """Refuse weight augmentation of models without kernels to transform."""
    if config.local.weight_augmentation == "off":
        return
    if any(isinstance(part, FedWave) for part in chain(strategy)):
        raise ConfigError(
            "local.weight_augmentation: FedWave's clients train the templates that their kernels "
            "are made from; take it with another strategy"
        )
    for size, model in sizes.models.items():
        try:
            kernels(model)
        except ValueError as error:
            named = f"{config.model_of(size).name}: {error}"
            raise ConfigError(
                f"local.weight_augmentation: {named}; take cnn, vgg8 or resnet20, or off"
            ) from None


def _warn_of_learned(strategy: Strategy, config: Config) -> None:
    """Say that a scaler makes a part of a learned network too loud.

    It makes up for standard weights, whose activations are small in a small part. Of a network
    that init=wave has learned on digits, the largest curvature of a quarter's loss grows from 18
    to 752 by it, where SGD with momentum 0.9 is stable up to 3.8/lr: lr 0.01 was borne, and
    better than without, 0.03 not. Weights cannot make up for it: sizes share their entries, and
    each would need them divided by another rate.
    """
    scales = any(isinstance(s, SizedFedAvg) and s.scaler for s in chain(strategy))
    if scales and config.init.method.name != "Standard":
        logger.warning(
            "strategy.args.scaler: init=%s gives weights that are at scale already, and small "
            "sizes may become unstable (on digits, at local.lr=0.03 and above): if their accuracy "
            "falls, lower local.lr or set it to false",
            config.init.method.name.lower(),
        )


def _check_optimisers(strategy: Strategy, config: Config) -> None:
    counts = [part.__name__ for part in declared(strategy) if part.needs_sgd]
    if counts and config.optimisers != {"sgd"}:
        key = "optimiser" if config.local.optimisers is None else "optimisers"
        raise ConfigError(f"local.{key}: {counts[0]} counts steps of SGD; set it to sgd for all")


def _check_majority(strategy: Strategy, config: Config, cohort: int) -> None:
    """Refuse to look for more liars than a robust rule can bear (arXiv 1703.02757, 1802.07927)."""
    for part in chain(strategy):
        if not isinstance(part, Krum | MultiKrum | Bulyan) or not part.num_malicious_nodes:
            continue
        liars = part.num_malicious_nodes
        needed = 4 * liars + 3 if isinstance(part, Bulyan) else 2 * liars + 3
        if cohort < needed:
            raise ConfigError(
                f"strategy.args.num_malicious_nodes: {type(part).__name__} bears {liars} of at "
                f"least {needed} clients a round; there are {cohort}"
            )


def _check_personal(strategy: Strategy, sizes: SizedModels) -> None:
    """Refuse a pattern that leaves nothing, everything, or half of a tie with the clients."""
    for part in chain(strategy):
        if not isinstance(part, Personal) or isinstance(part, LocalOnly):
            continue
        names = [name for of in sizes.shapes.values() for name in of]
        own = [name for name in names if part.is_personal(name)]
        if not own:
            raise ConfigError(
                f"strategy.args.personal: matches no array; there are {', '.join(names)}"
            )
        if len(own) == len(names):
            raise ConfigError(
                "strategy.args.personal: leaves everything with the clients; that is strategy=local"
            )
        if not isinstance(part, FedPer):  # who tells by names
            continue
        for same in (tie for model in sizes.models.values() for tie in state.tied(model)):
            if len({part.is_personal(name) for name in same}) > 1:
                raise ConfigError(
                    f"strategy.args.personal: {' and '.join(same)} are one tied array, of which "
                    "one name would stay with the clients and the other not; match all or none"
                )


def _check_contrast(strategy: Strategy, sizes: SizedModels) -> None:
    """Refuse to contrast what goes into the classifier of a model that has none to tap."""
    if any(isinstance(part, Moon) and part.mu for part in chain(strategy)):
        for model in sizes.models.values():
            with blaming(ConfigError, "strategy: ", kinds=False):
                require_classifier(model, blank_inputs(sizes.shape, 2))


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
        "min_available_nodes": 1,  # all were awaited; who is away in a round is not waited for
    }
    *_, inner = chain(strategy)
    if not isinstance(inner, FedAvg):  # an attribute of that name may mean anything
        logger.warning(
            "%s samples by its own rule: clients.fraction is unused", type(inner).__name__
        )
        return
    for name, value in sampling.items():
        if name not in config.strategy.args:
            setattr(inner, name, value)
        elif name.startswith("min_") and getattr(inner, name) > count:
            raise ConfigError(f"strategy.args.{name}: there are only {count} clients")
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


def _check_private(strategy: Strategy, config: Config, sizes: SizedModels) -> None:
    """Refuse what needs more of the clients than a private run lets them say.

    Of statistics, which the noise may make useless, a warning.

    Raises
    ------
    ConfigError
        Names the strategy.
    """
    *_, inner = chain(strategy)
    name = type(inner).__name__
    by = averages_by(inner) or messages.NUM_EXAMPLES
    if isinstance(inner, SizedFedAvg) and inner.classifier:
        raise ConfigError(
            f"strategy.args.class_rows: {name} needs to know which classes a client has, which a "
            "private run keeps; set it to false"
        )
    fishers = isinstance(inner, OneShot) and inner.asks_for_fishers
    if fishers or isinstance(inner, Scaffold | Personal) or by != messages.NUM_EXAMPLES:
        raise ConfigError(f"strategy: {name} needs more of a client than one noised model")
    if isinstance(inner, QFedAvg) and config.withheld:
        raise ConfigError(f"strategy: {name} needs the clients' losses: privacy.reports=clear")
    if not is_own(config.partition) and any(map(state.measured, sizes.models.values())):
        raise ConfigError(
            "model.norm=static: its statistics are measured on the clients' images, and saved, "
            "which privacy does not cover; take model.norm=group"
        )
    if sizes.buffers:
        logger.warning(
            "model: running statistics (%s) get noise as weights do, and a variance below zero "
            "makes the model answer NaN; another norm, as model.norm=group, has none",
            sizes.buffers[0],
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
