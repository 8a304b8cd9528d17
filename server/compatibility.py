"""Whether a strategy goes with the rest of a run: what does not is refused before it starts.

What a strategy refuses itself stands with it (``require``); here are rules that go by what any may
say of itself, and one about Flower's own.
"""

from __future__ import annotations

import logging

from flwr.serverapp.strategy import (
    Bulyan,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    Strategy,
)

from fedwsa.algorithms.attacks.attack import ModelAttack, open_attack
from fedwsa.algorithms.averaging import averages_by
from fedwsa.algorithms.objective import overrides
from fedwsa.algorithms.run_facts import (
    RunFacts,
    require,
    require_bearable,
    require_no_noise,
)
from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.config.blame import blaming
from fedwsa.config.component import Component, ConfigError, check_arguments, locate
from fedwsa.data.own import is_own
from fedwsa.models import state
from fedwsa.models.augment import kernels
from fedwsa.schema.config import Config
from fedwsa.wire.names import NUM_EXAMPLES
from server.cohorts import leaves_it_to_the_strategy, open_sampler
from server.paced import require_paced
from server.sizes import SizedModels

logger = logging.getLogger("fedwsa")

_PER_LIAR = {Krum: 2, MultiKrum: 2, Bulyan: 4}
"""How many clients a robust rule of Flower's needs for each liar, beside three."""


def facts_of(config: Config, sizes: SizedModels, cohort: int) -> RunFacts:
    """What strategies may have to refuse a run for."""
    return RunFacts(
        rounds=config.rounds,
        epochs=config.local.epochs,
        cohort=cohort,
        attackers=round(len(config.attackers) * cohort / config.clients.count),
        private=config.private,
        transforms_weights=config.local.weight_augmentation != "off",
        init=config.init.method.name,
        models=sizes.models,
        shapes=sizes.shapes,
        example_shape=sizes.shape,
    )


def require_compatible(
    strategy: Strategy, config: Config, sizes: SizedModels, run: RunFacts
) -> None:
    """Refuse a strategy that does not go with the run.

    Raises
    ------
    ConfigError
        Names the key, and what to set.
    """
    _require_unseen(config)
    _require_sampled(strategy, config)
    _require_compressible(strategy, config)
    if not config.pace.synchronous:
        require_paced(strategy, config)
    with blaming(ConfigError, "", kinds=False):
        require(strategy, run)
    _require_sgd(strategy, config)
    _require_majority(strategy, run.cohort)
    if config.attack.share:
        _require_attackable(strategy, config, run)
        _require_bearable(strategy, run)
    _require_kernels(strategy, config, sizes)
    if config.private:
        _require_private(strategy, config, sizes, run)


def require_whole_models(outer: Component, inner: object) -> None:
    """Refuse to wrap what does not exchange whole models.

    Raises
    ------
    ConfigError
        Flower's privacy wrappers compare each reply with the model that all were sent.
    """
    if isinstance(inner, Strategy) and not traits_of(inner).whole_models:
        raise ConfigError(
            f"strategy.args: {outer.name} needs clients that send one whole model, which "
            f"{type(inner).__name__} does not"
        )


def _require_unseen(config: Config) -> None:
    """Refuse a share of unseen clients that is none of them, or leaves none to train."""
    share, count = config.clients.unseen, config.clients.count
    if share and not 0 < len(config.unseen) < count:
        who = "everybody" if config.unseen else "nobody"
        raise ConfigError(f"clients.unseen: {share:g} of {count} clients is {who}")


def _require_sampled(strategy: Strategy, config: Config) -> None:
    """Refuse a sampler where privacy counts on chance, or nobody is asked."""
    if leaves_it_to_the_strategy(config):
        return
    open_sampler(config)
    if config.private:
        raise ConfigError(
            "sampler: the price of privacy holds for clients that are drawn uniformly; take "
            "sampler=uniform"
        )
    if not all(traits_of(part).on_devices for part in chain(strategy)):
        raise ConfigError(f"sampler: {type(strategy).__name__} asks no client to train")
    if "fraction_train" in config.strategy.args:
        raise ConfigError("strategy.args.fraction_train: with a sampler it is clients.fraction")


def _require_compressible(strategy: Strategy, config: Config) -> None:
    """Refuse to compress what noise was added to, or what a memory would send twice."""
    wish = config.compress
    if wish.does_nothing:
        return
    for part in chain(strategy):
        if not traits_of(part).sends_weights:
            raise ConfigError(f"compress: clients of {type(part).__name__} send no weights")
    function = locate(wish.target, "compress._target_")
    keys = check_arguments(function, wish.arguments, "compress", 2, {})
    if config.private:
        raise ConfigError(
            "compress: clients of a private run clip and send whole models; take compress=none"
        )
    if keys.get("unbiased") and wish.feedback:
        raise ConfigError("compress.unbiased: with compress.feedback the rest would be sent twice")
    if not all(traits_of(part).on_devices for part in chain(strategy)):
        raise ConfigError(f"compress: {type(strategy).__name__} has no clients that send updates")


def _require_kernels(strategy: Strategy, config: Config, sizes: SizedModels) -> None:
    """Refuse to transform weights that an algorithm trains as they are, or without kernels."""
    if config.local.weight_augmentation == "off":
        return
    for part in chain(strategy):
        for kind in traits_of(part).objectives:
            if overrides(kind, "phases") or overrides(kind, "descend"):
                raise ConfigError(
                    f"local.weight_augmentation: {type(part).__name__} trains the weights as they "
                    "are; set it to off"
                )
    for size, model in sizes.models.items():
        try:
            kernels(model)
        except ValueError as error:
            named = f"{config.model_of(size).name}: {error}"
            raise ConfigError(
                f"local.weight_augmentation: {named}; take cnn, vgg8 or resnet20, or off"
            ) from None


def _require_sgd(strategy: Strategy, config: Config) -> None:
    """Refuse other optimisers where the clients count steps of SGD."""
    counts = [type(part).__name__ for part in chain(strategy) if traits_of(part).needs_sgd]
    if counts and config.optimisers != {"sgd"}:
        key = "optimiser" if config.local.optimisers is None else "optimisers"
        raise ConfigError(f"local.{key}: {counts[0]} counts steps of SGD; set it to sgd for all")


def _require_majority(strategy: Strategy, cohort: int) -> None:
    """Refuse to look for more liars than a robust rule can bear (arXiv 1703.02757, 1802.07927)."""
    for part in chain(strategy):
        for kind, clients in _PER_LIAR.items():
            liars = part.num_malicious_nodes if isinstance(part, kind) else 0
            needed = clients * liars + 3
            if liars and cohort < needed:
                raise ConfigError(
                    f"strategy.args.num_malicious_nodes: {type(part).__name__} bears {liars} of at "
                    f"least {needed} clients a round; there are {cohort}"
                )


def _require_attackable(strategy: Strategy, config: Config, run: RunFacts) -> None:
    """Refuse attackers where nobody could attack, or nobody is honest; warn of idle ones."""
    share, count = config.attack.share, config.clients.count
    if not 0 < len(config.attackers) < count:
        who = "everybody" if config.attackers else "nobody"
        raise ConfigError(f"attack.share: {share:g} of {count} clients is {who}")
    if config.clients.sizes is not None:
        raise ConfigError("attack: updates of clients of one size are forged; leave clients.sizes")
    if not all(traits_of(part).on_devices for part in chain(strategy)):
        raise ConfigError(f"attack: {type(strategy).__name__} has no clients that could attack")
    attack = open_attack(config.attack.rule)
    if isinstance(attack, ModelAttack):
        for part in chain(strategy):
            if not traits_of(part).sends_weights:
                raise ConfigError(
                    f"attack: clients of {type(part).__name__} send no weights that "
                    f"attack={config.attack.name} could forge; label_flip is on their data"
                )
    if why := attack.idle(run.cohort, max(1, run.attackers)):
        logger.warning("attack=%s does nothing: %s", config.attack.name, why)


def _require_bearable(strategy: Strategy, run: RunFacts) -> None:
    """Refuse more attackers in a cohort than a defence of Flower's is made for."""
    for part in chain(strategy):
        bears = run.cohort
        if isinstance(part, tuple(_PER_LIAR)):
            bears = part.num_malicious_nodes  # type: ignore[attr-defined]
        elif isinstance(part, FedTrimmedAvg):
            bears = int(part.beta * run.cohort)
        elif isinstance(part, FedMedian):
            bears = (run.cohort - 1) // 2
        with blaming(ConfigError, "", kinds=False):
            require_bearable(type(part).__name__, bears, run)


def _require_private(strategy: Strategy, config: Config, sizes: SizedModels, run: RunFacts) -> None:
    """Refuse what needs more of the clients than a private run lets them say.

    Of statistics, which the noise may make useless, a warning.

    Raises
    ------
    ConfigError
        Names the strategy.
    """
    *_, inner = chain(strategy)
    if averages_by(inner) not in (None, NUM_EXAMPLES):
        require_no_noise(inner, run)
    if traits_of(inner).needs_losses and config.withheld:
        name = type(inner).__name__
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
