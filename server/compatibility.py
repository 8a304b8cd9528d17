"""Whether a strategy goes with the rest of a run: what does not is refused before it starts."""

from __future__ import annotations

import logging

from flwr.serverapp.strategy import (
    Bulyan,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from fedwsa.algorithms.averaging import averages_by
from fedwsa.algorithms.moon.client import require_classifier
from fedwsa.algorithms.moon.server import Moon
from fedwsa.algorithms.oneshot import OneShot
from fedwsa.algorithms.personal.fedper import FedPer
from fedwsa.algorithms.personal.local import LocalOnly
from fedwsa.algorithms.personal.server import Personal
from fedwsa.algorithms.scaffold.server import Scaffold
from fedwsa.algorithms.sizes.fedwave import FedWave
from fedwsa.algorithms.sizes.server import SizedFedAvg
from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.config.blame import blaming
from fedwsa.config.component import (
    Component,
    ConfigError,
)
from fedwsa.data.own import is_own
from fedwsa.models import blank_inputs, state
from fedwsa.models.augment import kernels
from fedwsa.schema.config import Config
from fedwsa.wire import messages
from server.sizes import SizedModels

logger = logging.getLogger("fedwsa")


def require_rounds(strategy: Strategy, config: Config) -> None:
    """Refuse more rounds than a strategy has."""
    for part in chain(strategy):
        if isinstance(part, OneShot) and config.rounds != part.rounds:
            raise ConfigError(
                f"rounds: {type(part).__name__} trains its clients once: set rounds=1, and "
                f"local.epochs (now {config.local.epochs}) to as many as they are to train"
            )


def require_whole_models(outer: Component, inner: object) -> None:
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


def require_kernels(strategy: Strategy, config: Config, sizes: SizedModels) -> None:
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


def warn_of_learned(strategy: Strategy, config: Config) -> None:
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


def require_sgd(strategy: Strategy, config: Config) -> None:
    """Refuse other optimisers where the clients count steps of SGD."""
    counts = [type(part).__name__ for part in chain(strategy) if traits_of(part).needs_sgd]
    if counts and config.optimisers != {"sgd"}:
        key = "optimiser" if config.local.optimisers is None else "optimisers"
        raise ConfigError(f"local.{key}: {counts[0]} counts steps of SGD; set it to sgd for all")


def require_majority(strategy: Strategy, config: Config, cohort: int) -> None:
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


def require_personal_part(strategy: Strategy, sizes: SizedModels) -> None:
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


def require_tap(strategy: Strategy, sizes: SizedModels) -> None:
    """Refuse to contrast what goes into the classifier of a model that has none to tap."""
    if any(isinstance(part, Moon) and part.mu for part in chain(strategy)):
        for model in sizes.models.values():
            with blaming(ConfigError, "strategy: ", kinds=False):
                require_classifier(model, blank_inputs(sizes.shape, 2))


def require_private(strategy: Strategy, config: Config, sizes: SizedModels) -> None:
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
