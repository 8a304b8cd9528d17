"""FedNova, the server half of :class:`fedwsa.algorithms.fednova.client.FedNova`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedwsa.algorithms.averaging import Sampling, weighing
from fedwsa.algorithms.traits import Traits
from fedwsa.wire import messages
from fedwsa.wire.names import NOVA, NOVA_LENGTH, NOVA_SQUARE, NOVA_WEIGHT


class FedNova(FedAvg):
    """Average the clients' updates per unit of local work, so that much work weighs no more.

    w ← w_g − τ·Σ_k p_k (w_g − w_k)/a_k with τ = Σ_k p_k a_k and p_k by examples; a_k is the
    length of client k's path. With equal a_k this is FedAvg.

    All of it follows from averages weighted by v_k = n_k/a_k, which may be partial: with
    w̄ = Σ v_k w_k / Σ v_k, and means of a and a² by the same weights,

        Σ p_k (w_g − w_k)/a_k = (w_g − w̄)/mean(a),    τ = mean(a²)/mean(a).

    Metrics are averaged by v_k too, so that WSA's scopes are fused as the models are.

    Source: arXiv 2007.07481.

    Parameters
    ----------
    buffers
        Names of arrays that are not trained (statistics of BatchNorm); they are only averaged.
    sampling
        As for Flower's FedAvg.
    """

    traits: ClassVar[Traits] = Traits(
        averages_by=NOVA_WEIGHT,
        wants=("buffers",),
        needs_sgd=True,
        transient=("_received",),  # set in each round
    )

    def __init__(self, *, buffers: Sequence[str] = (), **sampling: Unpack[Sampling]) -> None:
        super().__init__(**sampling)
        self.buffers = frozenset(buffers)
        self._received: dict[str, Tensor] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for the length of the clients' paths."""
        self._received = messages.to_tensors(arrays)
        config[NOVA] = True
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what each unit of work brought, and go as far as the average path."""
        with weighing(self, NOVA_WEIGHT):
            averaged, metrics = super().aggregate_train(server_round, replies)
        if averaged is None or metrics is None:
            return averaged, metrics
        length = messages.number(metrics, NOVA_LENGTH)
        factor = messages.number(metrics, NOVA_SQUARE) / length**2  # τ/mean(a)
        new = messages.to_tensors(averaged)
        for name, mean in new.items():
            if name not in self.buffers:
                before = self._received[name]
                new[name] = before + factor * (mean - before)
        return messages.to_arrays(new), metrics
