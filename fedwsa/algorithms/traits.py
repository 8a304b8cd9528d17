"""What a strategy says about itself: all that others must know of it, and where they ask for it.

A strategy without traits is as plain as Flower's interface says it is. Nothing else about it is
guessed: its other attributes and parameters may have any name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    QFedAvg,
    Strategy,
)

from fedwsa.algorithms.objective import Objective
from fedwsa.config.component import asked_for

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
    "root",
    "exits",
    "distilled",
)
"""What a strategy may name in :attr:`Traits.wants`, to get it by that name."""


@dataclass(frozen=True)
class Traits:
    """What others must know of a strategy; it stands in its class as ``traits``.

    Raises
    ------
    ValueError
        If it wants what there is not, or a field is not of its form.

    Examples
    --------
    >>> class Mine(FedAvg):
    ...     traits = Traits(averages_by="num-examples", wants=("head",))
    ...
    ...     def __init__(self, head: str, **sampling: float) -> None: ...
    """

    averages_by: str | Callable[[Any], str | None] | None = None
    """The metric by which it averages the replies, if it does nothing else with them, so that
    workers may average theirs (:mod:`fedwsa.algorithms.averaging`). Where that depends on its
    settings, a function of the strategy. None: it may look at single replies."""

    wants: tuple[str, ...] = ()
    """Which of :data:`FACTS` its constructor is given, by these names."""

    adds_noise: bool = False
    """Whether it is differentially private. A function that returns a private strategy says so
    too, as its attribute ``traits``."""

    needs_losses: bool = False
    """Whether clients must report their training loss."""

    needs_sgd: bool = False
    """Whether clients count steps of SGD."""

    no_scopes: str | None = None
    """Why weight scopes cannot be aligned; None: they can."""

    on_devices: bool = True
    """Whether training happens on the clients' devices."""

    has_global_model: bool = True
    """Whether what is aggregated is a model to test."""

    whole_models: bool = True
    """Whether all clients are sent the same whole model, and answer with one like it alone, which
    Flower's privacy wrappers compare."""

    sends_weights: bool = True
    """Whether clients send weights at all."""

    clients_remember: bool = False
    """Whether clients keep something between rounds."""

    takes_pulls: bool = False
    """Whether the pulls of the clients' terms are needed beside their models."""

    objectives: tuple[type[Objective], ...] = ()
    """Its client halves, if they do not come with this package: each is made where the server's
    message asks for it."""

    answers: tuple[tuple[str, str], ...] = ()
    """Array records beside the model: one that clients are sent, and the one that answers it for
    what they train, with names among those that were sent, and of their shapes."""

    rate: str | None = None
    """Its attribute that is the server's learning rate, which a run may schedule; None: it has
    none."""

    transient: tuple[str, ...] = ()
    """Attributes that are no memory: a checkpoint does without them."""

    requires: bool = False
    """Whether it refuses some runs, by a method ``require(run)``
    (:class:`fedwsa.algorithms.run_facts.RunFacts`)."""

    def __post_init__(self) -> None:
        if not isinstance(self.objectives, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, Objective) for kind in self.objectives
        ):
            raise ValueError(
                "objectives must be a tuple of subclasses of "
                f"{Objective.__module__}.Objective; it is {self.objectives!r}"
            )
        if not isinstance(self.answers, tuple) or not all(
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(n, str) for n in pair)
            for pair in self.answers
        ):
            raise ValueError(
                "answers must be a tuple of pairs (record that is sent, record that answers it); "
                f"it is {self.answers!r}"
            )
        if not isinstance(self.wants, tuple) or not set(self.wants) <= set(FACTS):
            raise ValueError(
                f"wants must be a tuple of names among {', '.join(FACTS)}; it is {self.wants!r}"
            )


def _by_its_key(strategy: FedAvg) -> str | None:
    """Of Flower's strategies that only average: their key, if metrics are averaged as usual."""
    usual = strategy.train_metrics_aggr_fn is FedAvg().train_metrics_aggr_fn
    return strategy.weighted_by_key if usual else None


_FLOWERS: dict[type, Traits] = {
    **dict.fromkeys((FedAvg, FedProx), Traits(averages_by=_by_its_key)),
    **dict.fromkeys((FedAdam, FedYogi, FedAdagrad), Traits(averages_by=_by_its_key, rate="eta")),
    FedAvgM: Traits(averages_by=_by_its_key, rate="server_learning_rate"),
    **dict.fromkeys(
        (
            DifferentialPrivacyServerSideFixedClipping,
            DifferentialPrivacyServerSideAdaptiveClipping,
            DifferentialPrivacyClientSideFixedClipping,
            DifferentialPrivacyClientSideAdaptiveClipping,
        ),
        Traits(adds_noise=True, wants=("num_sampled_clients",)),
    ),
    QFedAvg: Traits(needs_losses=True),
}
"""Of Flower's strategies, those that are not plain."""


def traits_of(subject: object) -> Traits:
    """The traits of a strategy, of its class, or of a function that makes one.

    Its own class is asked first. A subclass that says nothing has the traits of its parent, but
    for two. ``averages_by`` it must say again, since what it overrides may look at single replies.
    Of ``wants`` it gets what its own constructor takes; nothing of what Flower's classes get, whose
    parameters it may have given another meaning. Whatever it says, it adds noise if a parent does.

    Parameters
    ----------
    subject
        Anything; what says nothing is plain.
    """
    if not isinstance(subject, type | Strategy):  # a function
        said = getattr(subject, "traits", None)
        return _taken(said, subject) if isinstance(said, Traits) else Traits()
    kind = subject if isinstance(subject, type) else type(subject)
    found = {base: said for base in kind.__mro__ if (said := _said(base)) is not None}
    if not found:
        return Traits()
    said = found.get(kind)
    if said is None:
        base, inherited = next(iter(found.items()))
        wants = () if base in _FLOWERS else inherited.wants
        said = replace(inherited, averages_by=None, wants=wants)
    noise = any(of.adds_noise for of in found.values())
    return _taken(replace(said, adds_noise=noise), kind)


def _said(kind: type) -> Traits | None:
    """What a class says itself; of an attribute that is something else, nothing."""
    said = _FLOWERS.get(kind, vars(kind).get("traits"))
    return said if isinstance(said, Traits) else None


def _taken(traits: Traits, maker: Any) -> Traits:
    """Traits with what the maker of a strategy takes of what it wants."""
    if not traits.wants:
        return traits
    return replace(traits, wants=tuple(asked_for(maker, traits.wants, "strategy")))
