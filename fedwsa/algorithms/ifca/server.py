"""IFCA, the server half of :class:`fedwsa.algorithms.ifca.client.BestOfSeveral`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from pydantic import PositiveInt
from torch import Tensor

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.ifca.client import CLUSTER, BestOfSeveral
from fedwsa.algorithms.run_facts import RunFacts, require_no_noise
from fedwsa.algorithms.traits import Traits
from fedwsa.wire import messages


class IFCA(FedAvg):
    """Several models, each averaged over those clients that it suits best.

    Of the models other than the first, each begins as the first with the entries of its weights in
    another order, which is another draw where weights are drawn alike (ours; the paper draws anew).
    All are sent to all.

    Source: An Efficient Framework for Clustered Federated Learning, arXiv 2006.04088.

    Parameters
    ----------
    clusters
        How many models; 1 is federated averaging.
    sampling
        As for Flower's FedAvg.
    """

    traits: ClassVar[Traits] = Traits(
        has_global_model=False,
        whole_models=False,
        requires=True,
        transient=("_first",),
        no_scopes="each cluster has scopes of its own",
        objectives=(BestOfSeveral,),
    )

    def __init__(self, *, clusters: PositiveInt, **sampling: Unpack[Sampling]) -> None:
        if clusters < 1:
            raise ValueError(f"clusters must be one or more; got {clusters}")
        super().__init__(**sampling)
        self.clusters = clusters
        self.others: dict[str, Tensor] = {}
        self._first: ArrayRecord | None = None  # as sent in this round

    def require(self, run: RunFacts) -> None:
        """Refuse a private run: that a client says which model it took is covered by no noise.

        Raises
        ------
        ConfigError
            Names the strategy.
        """
        require_no_noise(self, run)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send all models."""
        self._first = arrays
        if not self.others:
            self.others = _drawn(messages.to_tensors(arrays), self.clusters)
        sent = list(super().configure_train(server_round, arrays, config, grid))
        return self._with_others(sent)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The same for evaluation."""
        sent = list(super().configure_evaluate(server_round, arrays, config, grid))
        return self._with_others(sent)

    def _with_others(self, sent: list[Message]) -> list[Message]:
        record = messages.to_arrays(self.others)
        name = BestOfSeveral.settings
        messages.change_contents(sent, lambda plain: RecordDict({**plain, name: record}))
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average each model over its clients; one that nobody took stays as it is."""
        given = [reply for reply in replies if reply.has_content()]
        metrics = super().aggregate_train(server_round, given)[1]
        first = self._first if given else None
        for cluster in range(self.clusters):
            own = [r for r in given if _cluster(r) == cluster]
            arrays = super().aggregate_train(server_round, own)[0] if own else None
            if arrays is None:
                continue
            if not cluster:
                first = arrays
                continue
            for name, tensor in messages.to_tensors(arrays).items():
                self.others[f"{cluster}/{name}"] = tensor
        return first, metrics


def _cluster(reply: Message) -> object:
    """What a client says that it took; it may say anything."""
    return messages.reply_metrics([reply])[0].get(CLUSTER)


def _drawn(first: dict[str, Tensor], clusters: int) -> dict[str, Tensor]:
    """The models beside the first one, by ``NUMBER/NAME``; drawn from torch's global generator."""
    return {
        f"{k}/{name}": tensor.flatten()[torch.randperm(tensor.numel())].view_as(tensor)
        if tensor.dim() > 1
        else tensor.clone()
        for k in range(1, clusters)
        for name, tensor in first.items()
    }
