"""Weight scope alignment around any Flower strategy, the server half of the method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from logging import INFO
from typing import ClassVar, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvgM, Strategy
from flwr.supercore import log
from torch import Tensor

from fedwsa.algorithms.averaging import averaged, averages_by
from fedwsa.algorithms.privacy import is_private
from fedwsa.algorithms.sizes.server import sized
from fedwsa.algorithms.statistics import spared
from fedwsa.algorithms.traits import Traits, traits_of
from fedwsa.algorithms.wrapping import Wrapper, chain
from fedwsa.algorithms.wsa.instruction import REPORTED, ScopeInstruction
from fedwsa.scope.rescale import rescale_gaussian
from fedwsa.scope.weight_scope import (
    DEFAULT_FLOOR,
    DEFAULT_STRENGTH,
    NORMALISED_STRENGTH,
    Fusion,
    Reduction,
    WeightScope,
    choose,
    fan_in,
    spread,
    variance_from,
)
from fedwsa.wire import messages
from fedwsa.wire.names import CONFIG, SCOPE_ARRAY, SCOPE_PRESENT, SCOPE_TARGET

Target = Literal["fused", "initial"]
Align = Literal["none", "after"]
Source = Literal["reported", "measured", "noised"]


@dataclass(frozen=True)
class ScopeReport:
    """What one round did to the scopes.

    Attributes
    ----------
    fused : WeightScope
        The clients' scopes, fused; as the largest size has them where they are normalised.
    averaged : WeightScope
        The scope of the aggregated model. Averaging shrinks variance, so this one is narrower.
    kl : list of float
        Mean over the clients of their KL to the round's target, a number per layer; that of the
        fused scope where clients do not report theirs.
    """

    fused: WeightScope
    averaged: WeightScope
    kl: list[float]


class FedWSA(Wrapper):
    """Align the weight scopes of the clients, whatever the strategy that averages them.

    Each round the clients get a target scope beside the model and train towards it (see
    :class:`fedwsa.algorithms.wsa.client.ScopeAlignment`); they answer with their scopes as lists in
    their metrics, which Flower's strategies average like any metric, and the averages are the
    fused scope. Stands outside all that aggregates: ``FedWSA(SomeDPWrapper(FedAvg()))``.

    Source: Weight Scope Alignment, arXiv 2408.12237. Ours, since the paper does not say: the
    rules of ``fusion``, ``align`` and ``reduction``, and the initial model's scope as the
    first target.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy of the Message API that reports the clients' averaged metrics.
    strength : float, optional
        λ. Default: 1 for ``reduction="layer"``, 10 with ``normalise``, and 0.01 for
        ``reduction="entries"``. At zero the clients
        only measure.
    fusion : {"moments", "mean_variance", "mean_std"}
        How variances are fused, see :func:`fedwsa.scope.weight_scope.spread`.
    target : {"fused", "initial"} or WeightScope
        The scope to train towards: the one fused in the round before (in round 1 that of the
        initial model), always that of the initial model, or one given.
    align : {"none", "after"}
        ``after`` rescales each layer of the aggregated model to the fused scope.
    layers : str, optional
        A regular expression over parameter names. Default: all with two or more dimensions.
    reduction : {"layer", "entries"}
        Whether a layer's KL counts once or once per entry.
    floor : float
        Smallest standard deviation in the KL.
    normalise : bool
        Scopes go over the wire as (μ·√fan_in, σ·√fan_in), by the fan-in that a layer has at each
        client, so that one target serves every width (ours): a standard initialisation has
        σ ∝ 1/√fan_in.
    source : {"reported", "measured", "noised"}, optional
        Where the fused scope comes from: what clients report; or, so that nothing is said of them
        beside what differential privacy covers, the scope of the aggregated model, noise and all;
        or scopes that go among the arrays, and are clipped and noised with them (ours, all three).
        Default: measured around one of Flower's privacy wrappers, or a class that says
        ``traits = Traits(adds_noise=True)``, else reported; where clients
        add noise themselves (LocalDpMod), which nobody sees here, say measured.
    untrained : iterable of str
        Names of arrays that no client trains, frozen layers for instance: they take no part.

    Around a strategy for several sizes (:mod:`fedwsa.algorithms.sizes.server`) the layers are those
    of the largest size. A client reports which of them it has; each is fused over those that have
    it, and the target of one that nobody has stays.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> strategy = FedWSA(FedAvg(fraction_train=0.1), strength=10.0)
    """

    traits: ClassVar[Traits] = Traits(
        averages_by=lambda wsa: wsa._averages_by(),
        transient=("report",),  # of the last round alone
    )

    def __init__(
        self,
        strategy: Strategy,
        *,
        strength: float | None = None,
        fusion: Fusion = "moments",
        target: Target | WeightScope = "fused",
        align: Align = "none",
        layers: str | None = None,
        reduction: Reduction = "layer",
        floor: float = DEFAULT_FLOOR,
        normalise: bool = False,
        source: Source | None = None,
        untrained: Iterable[str] = (),
    ) -> None:
        self.strategy, self.normalise = strategy, normalise
        self.untrained = frozenset(untrained)
        choose(Reduction, reduction, "reduction")
        self.reduction = reduction
        usual = NORMALISED_STRENGTH if normalise else DEFAULT_STRENGTH
        self.strength = usual[reduction] if strength is None else float(strength)
        if not 0.0 <= self.strength < float("inf"):
            raise ValueError(f"strength must be zero or a positive number; got {strength}")
        if not 0.0 < floor < float("inf"):
            raise ValueError(f"floor must be a positive number; got {floor}")
        self.floor = floor
        choose(Fusion, fusion, "fusion")
        self.fusion = fusion
        self.align = choose(Align, align, "align")
        if align == "after" and any(isinstance(part, FedAvgM) for part in chain(strategy)):
            raise ValueError(
                "align='after' does not go with FedAvgM, which continues from its own copy of "
                "the model: each rescaling would enter its momentum"
            )
        for part in chain(strategy):
            if (why := traits_of(part).no_scopes) is not None:
                raise ValueError(f"{type(part).__name__} does not go with it: {why}")
        sizes = sized(strategy)
        self._partial = sizes is not None and (len(sizes.shapes) > 1 or sizes.has_own)
        if align == "after" and self._partial:
            raise ValueError(
                "align='after' needs models of one size: parts of a rescaled model have no scope "
                "of their own"
            )
        if source is None:
            source = "measured" if is_private(strategy) else "reported"
        self.source = choose(Source, source, "source")
        if source == "noised" and sizes is not None:
            raise ValueError("source='noised' needs models of one size; take measured")
        if source == "noised":  # scopes among the arrays are no weights, to be stepped like them
            self.strategy = spared(strategy, [SCOPE_ARRAY])
        self.layers = layers
        self._follows_fused = target == "fused"
        self.target: WeightScope | None = None
        if isinstance(target, WeightScope):
            self.target = target
        else:
            choose(Target, target, "target")
        self._root: Tensor | None = None  # √fan_in of the largest model where that is wished
        self.report: ScopeReport | None = None

    def _averages_by(self) -> str | None:
        """As the wrapped strategy: scopes are fused from averages alone.

        One that needs the pulls of the clients' terms beside their models gets whole replies.
        """
        takes = any(traits_of(part).takes_pulls for part in chain(self.strategy))
        return None if takes and self.strength else averages_by(self.strategy)

    def summary(self) -> None:
        """Log the settings, then those of the wrapped strategy."""
        log(
            INFO,
            "\t├──> FedWSA: strength %g, reduction %s, fusion %s, align %s, layers %s",
            self.strength,
            self.reduction,
            self.fusion,
            self.align,
            self.layers or "all",
        )
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Add the target scope to the messages of the wrapped strategy."""
        tensors = self._model(arrays, server_round)
        given = self.target
        if given is None:
            trained = {n: t for n, t in tensors.items() if n not in self.untrained}
            given = WeightScope.measure(trained, self.layers)
        elif left := [n for n in given.names if n in self.untrained]:
            given = given.only([n for n in given.names if n not in left])
        self._names = given.names
        if unknown := [n for n in self._names if n not in tensors]:
            raise ValueError(f"the target scope has layers that the model lacks: {unknown}")
        if self.normalise and self._root is None:
            self._root = fan_in([tensors[n] for n in self._names]).sqrt()
            given = given.times(self._root)
        self.target = given
        records = self._instruction(given).to_records()
        settings, target = records[CONFIG], MetricRecord(records[SCOPE_TARGET])
        if self.source == "noised":
            arrays = self._extended(arrays, self.target)
        configured = list(self.strategy.configure_train(server_round, arrays, config, grid))

        def instructed(content: RecordDict) -> RecordDict:
            """A copy with the instruction in it; arrays are shared, not copied.

            Client mods of Flower want exactly one ConfigRecord, so ours is an addition to it, and
            to a copy: FedAvg shares one among all messages of all rounds.
            """
            found = content.config_records.items()
            name, plain = next(iter(found), (CONFIG, ConfigRecord()))
            extended = ConfigRecord({**plain, **settings})
            return RecordDict({**content, name: extended, SCOPE_TARGET: target})

        messages.change_contents(configured, instructed)
        return averaged(self, configured)

    def _instruction(self, target: WeightScope) -> ScopeInstruction:
        return ScopeInstruction(
            target,
            self.strength,
            self.fusion,
            self.reduction,
            self.floor,
            normalise=self.normalise,
            partial=self._partial,
            reported=self.source == "reported",
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the wrapped strategy aggregate, then fuse the scopes into the next target.

        Raises
        ------
        ValueError
            If the clients' metrics hold no scopes, or impossible ones.
        """
        given = replies if isinstance(replies, list) else list(replies)
        answered = any(reply.has_content() for reply in given)
        arrays, metrics = self.strategy.aggregate_train(server_round, given)
        if arrays is None or not answered:  # the old target stays
            return arrays, metrics
        noised = None
        if self.source == "noised":
            noised = messages.to_tensors(arrays)[SCOPE_ARRAY].double()
            arrays = ArrayRecord({k: a for k, a in arrays.items() if k != SCOPE_ARRAY})
        tensors = self._model(arrays, server_round)
        averaged = WeightScope.measure({n: tensors[n] for n in self._names})
        if self.source == "reported":
            fused, kl = self._fused(MetricRecord() if metrics is None else metrics)
        else:
            fused, kl = self._unreported(averaged, noised)
        plain = fused if self._root is None else fused.times(1 / self._root)
        self.report = ScopeReport(plain, averaged, kl.tolist())
        if self._follows_fused:
            self.target = fused
        if self.align == "after":
            arrays = messages.to_arrays(rescale_gaussian(tensors, plain, self.floor))
        return arrays, metrics

    def _fused(self, metrics: MetricRecord) -> tuple[WeightScope, Tensor]:
        """The clients' scopes, and their mean KL to the target, from the averaged metrics."""
        mean, second, kl = (self._take(metrics, key) for key in REPORTED)
        if self._partial:
            held = self._take(metrics, SCOPE_PRESENT)
            return self._over_holders(mean, second, held), kl / held
        return WeightScope(self._names, mean, variance_from(mean, second, self.fusion)), kl

    def _unreported(
        self, averaged: WeightScope, noised: Tensor | None
    ) -> tuple[WeightScope, Tensor]:
        """The scope of the aggregate, or what the noise left of the clients'."""
        assert self.target is not None
        if noised is None:
            fused = averaged if self._root is None else averaged.times(self._root)
        else:
            mean, second = noised
            variance = variance_from(mean, second, self.fusion).clamp(min=self.floor**2)
            fused = WeightScope(self._names, mean, variance)
        return fused, fused.kl(self.target, self.floor)

    def _extended(self, arrays: ArrayRecord, target: WeightScope) -> ArrayRecord:
        """The arrays with the target among them, from which the clients' scopes differ little."""
        moved = torch.stack([target.mean, spread(target.mean, target.variance, self.fusion)])
        return ArrayRecord({**arrays, **messages.to_arrays({SCOPE_ARRAY: moved.float()})})

    def _model(self, arrays: ArrayRecord, server_round: int) -> dict[str, Tensor]:
        """The model whose layers are aligned: of several sizes the largest."""
        sizes = sized(self.strategy)
        if sizes is not None:
            arrays = sizes.aligned(arrays, server_round)
        return messages.to_tensors(arrays)

    def _over_holders(self, mean: Tensor, spread: Tensor, held: Tensor) -> WeightScope:
        """Σ w x / Σ w over the clients that have a layer, which reported zeros if they had not.

        All are averages over all clients: ``held`` of ones and zeros, so that x / held is the
        average over the holders. The target of a layer that nobody has stays.
        """
        assert self.target is not None
        there = held > 0
        mean, spread = mean / held, spread / held
        variance = variance_from(mean, spread, self.fusion)
        return WeightScope(
            self._names,
            torch.where(there, mean, self.target.mean),
            torch.where(there, variance, self.target.variance),
        )

    def _take(self, metrics: MetricRecord, key: str) -> Tensor:
        """Take a list with a number per layer out of the aggregated metrics."""
        values = metrics.pop(key, None)
        if not isinstance(values, list) or len(values) != len(self._names):
            raise ValueError(
                f"the aggregated metrics lack {key} for {len(self._names)} layers; the clients "
                "must report ScopeAlignment.end() in their metrics: MetricRecord({..., "
                "**alignment.end()}), and the strategy's train_metrics_aggr_fn must keep it"
            )
        return torch.tensor(values, dtype=torch.float64)
