"""BatchNorm's statistics beside a server's optimiser: averaged, not optimised."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedAvgM, Strategy
from flwr.serverapp.strategy.fedopt import FedOpt
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedwsa.algorithms.averaging import averages_by
from fedwsa.algorithms.wrapping import Wrapper
from fedwsa.wire import messages


class AveragedStatistics(Wrapper):
    """Take the clients' mean of arrays that are not trained, whatever the strategy makes of them.

    Flower's FedAvgM, FedAdam, FedYogi and FedAdagrad take a step of an optimiser on every array.
    On running means and variances, which are measured anew by each client, a step has no meaning:
    momentum carries a variance past its mean, below zero, and the model answers NaN; Adam's is so
    small that the statistics stay behind the weights. Here, ours, the step is for the weights
    alone, and s ← Σ p_k s_k for a statistic s, p_k by examples.

    Parameters
    ----------
    strategy : FedAvg
        One with an optimiser of the server; others may guard the statistics, as the median does,
        or add noise to them.
    buffers
        Names of the arrays that are not trained.
    """

    def __init__(self, strategy: FedAvg, buffers: Iterable[str]) -> None:
        self.strategy: FedAvg = strategy
        self.buffers = frozenset(buffers)

    @property
    def averages_by(self) -> str | None:
        """As the wrapped strategy: a mean of partial means is that of all."""
        return averages_by(self.strategy)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy take its step, and put the means in the place of its statistics."""
        given = replies if isinstance(replies, list) else list(replies)
        # Before the strategy sees them: some of Flower's empty the replies to save memory.
        statistics = [self._statistics(r.content) for r in given if r.has_content()]
        arrays, metrics = self.strategy.aggregate_train(server_round, given)
        if arrays is None or not statistics:
            return arrays, metrics
        means = aggregate_arrayrecords(statistics, self.strategy.weighted_by_key)
        return ArrayRecord({**arrays, **means}), metrics

    def _statistics(self, content: RecordDict) -> RecordDict:
        """A reply with nothing but its statistics, and what it counts."""
        model, metrics = messages.model_arrays(content), messages.only_metrics(content)
        assert model is not None
        assert metrics is not None
        own = {name: array for name, array in model.items() if name in self.buffers}
        return RecordDict({messages.ARRAYS: ArrayRecord(own), messages.METRICS: metrics})


def spared(strategy: Strategy, buffers: Iterable[str]) -> Strategy:
    """The strategy, with statistics averaged if it would optimise them."""
    names = frozenset(buffers)
    if names and isinstance(strategy, FedOpt | FedAvgM):
        return AveragedStatistics(strategy, names)
    return strategy
