"""BatchNorm's statistics beside a server's optimiser: averaged, not optimised."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import ClassVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedAvgM, QFedAvg, Strategy
from flwr.serverapp.strategy.fedopt import FedOpt
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedwsa.algorithms.averaging import averages_by
from fedwsa.algorithms.traits import Traits
from fedwsa.algorithms.wrapping import Wrapper
from fedwsa.wire import messages


class AveragedStatistics(Wrapper):
    """Take the clients' mean of arrays that are not trained, and show the strategy the others.

    Flower's FedAvgM, FedAdam, FedYogi, FedAdagrad and QFedAvg take a step of an optimiser on every
    array. On running means and variances, which are measured anew by each client, a step has no
    meaning: momentum carries a variance past its mean, below zero, and the model answers NaN;
    Adam's and QFedAvg's are so small that the statistics stay behind the weights, and the length
    of QFedAvg's follows from how far they moved. Here, ours, the step is for the weights alone,
    and s ← Σ p_k s_k for a statistic s, p_k by examples.

    Parameters
    ----------
    strategy : FedAvg
        One that takes a step; others may guard the statistics, as the median does.
    buffers
        Names of the arrays that are not trained.
    """

    # As the wrapped strategy: a mean of partial means is that of all.
    traits: ClassVar[Traits] = Traits(averages_by=lambda wrapper: averages_by(wrapper.strategy))

    def __init__(self, strategy: FedAvg, buffers: Iterable[str]) -> None:
        self.strategy: FedAvg = strategy
        self.buffers = frozenset(buffers)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Show the strategy the weights, and send the statistics with them."""
        weights, statistics = self._parted(arrays)
        configured = list(self.strategy.configure_train(server_round, weights, config, grid))
        messages.change_contents(
            configured,
            lambda plain: _with_model(plain, _joined(arrays, _model(plain), statistics)),
        )
        return configured

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy take its step, and put the means beside its weights."""
        shown, statistics, order = [], [], ArrayRecord()
        for reply in replies:
            if reply.has_content():
                order = _model(reply.content)
                weights, own = self._parted(order)
                statistics.append(_with_model(reply.content, own))
                reply = copy.copy(reply)  # the content of the reply itself stays
                reply.content = _with_model(reply.content, weights)
            shown.append(reply)
        arrays, metrics = self.strategy.aggregate_train(server_round, shown)
        if arrays is None or not statistics:
            return arrays, metrics
        means = aggregate_arrayrecords(statistics, self.strategy.weighted_by_key)
        return _joined(order, arrays, means), metrics

    def _parted(self, arrays: ArrayRecord) -> tuple[ArrayRecord, ArrayRecord]:
        """What the strategy sees, and the statistics."""
        parts: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
        for name, array in arrays.items():
            parts[name in self.buffers][name] = array
        return ArrayRecord(parts[False]), ArrayRecord(parts[True])


def _model(content: RecordDict) -> ArrayRecord:
    model = messages.model_arrays(content)
    assert model is not None
    return model


def _with_model(content: RecordDict, model: ArrayRecord) -> RecordDict:
    """A copy of the content with another model; all else is shared."""
    old = _model(content)
    return RecordDict({k: model if record is old else record for k, record in content.items()})


def _joined(order: ArrayRecord, weights: ArrayRecord, statistics: ArrayRecord) -> ArrayRecord:
    """A whole model, in the order that it had: privacy wrappers pair arrays by it."""
    return ArrayRecord({**order, **weights, **statistics})


def spared(strategy: Strategy, buffers: Iterable[str]) -> Strategy:
    """The strategy, with statistics averaged if it, or one that it wraps, would step them."""
    names = frozenset(buffers)
    if names and isinstance(strategy, FedOpt | FedAvgM | QFedAvg):
        return AveragedStatistics(strategy, names)
    inner = getattr(strategy, "strategy", None)
    if isinstance(inner, Strategy):
        strategy.strategy = spared(inner, names)  # type: ignore[attr-defined]
    return strategy
