"""FedDyn, the server half of :class:`fedwsa.algorithms.feddyn.client.FedDyn`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from pydantic import PositiveFloat
from torch import Tensor

from fedwsa.algorithms.averaging import Sampling, weighing
from fedwsa.algorithms.memory.server import Remembering
from fedwsa.algorithms.traits import Traits
from fedwsa.wire import messages
from fedwsa.wire.names import DYN_ALPHA, DYN_COUNT, DYN_PULL

logger = logging.getLogger("fedwsa")


class FedDyn(Remembering):
    """Federated averaging with dynamic regularisation, so that local minima agree in the end.

    h ← h − α·(1/N)·Σ_{k∈S}(w_k − w_g), then w_g ← mean_{k∈S}(w_k) − h/α. Clients count once
    each, whatever their examples, as in the paper.

    Where clients keep a gradient p_k that is not of their loss (WSA's term) out of theirs, it is
    kept out of h too, the mean of theirs: h ← h − (1/N)·Σ_{k∈S}[α(w_k − w_g) + p_k] (ours).

    Source: arXiv 2111.04263, algorithm 1.

    Parameters
    ----------
    alpha
        α > 0; at zero the method divides by zero.
    buffers
        Names of arrays that are not trained (statistics of BatchNorm); they are only averaged.
    sampling
        As for Flower's FedAvg.
    """

    traits: ClassVar[Traits] = replace(
        Remembering.traits,
        averages_by=DYN_COUNT,
        wants=("buffers",),
        takes_pulls=True,  # so that with them models cannot be averaged at the workers
        transient=("_received",),  # set in each round
    )

    def __init__(
        self, alpha: PositiveFloat, *, buffers: Sequence[str] = (), **sampling: Unpack[Sampling]
    ) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha must be above 0, FedDyn divides by it; got {alpha}")
        super().__init__(**sampling)
        self.alpha, self.buffers = float(alpha), frozenset(buffers)
        self.h: dict[str, Tensor] = {}
        self._received: dict[str, Tensor] = {}
        self._nodes = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Announce α to what FedAvg sends."""
        self._received = messages.to_tensors(arrays)
        self._nodes = len(list(grid.get_nodes()))  # away or not: N is the whole fleet
        config[DYN_ALPHA] = self.alpha
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the models, and go on by what is left of the drift."""
        given = self.accept(server_round, replies)
        pulls = [p for r in given if r.has_content() and (p := _pull(r)) is not None]
        with weighing(self, DYN_COUNT):
            averaged, metrics = super().aggregate_train(server_round, given)
        if averaged is None or not self.accepted:  # all begin anew
            return averaged, metrics
        count = sum(messages.number(m, DYN_COUNT) for m in messages.reply_metrics(given))
        share = count / self._nodes  # |S|/N: partial averages add their counts up
        new = messages.to_tensors(averaged)
        for name, mean in new.items():
            if name in self.buffers:
                continue
            h = self.h.get(name, torch.zeros_like(mean))
            self.h[name] = h - self.alpha * share * (mean - self._received[name])
            if own := [pull[name] for pull in pulls if name in pull]:
                self.h[name] -= sum(own[1:], start=own[0]) / self._nodes
            new[name] = mean - self.h[name] / self.alpha
        return messages.to_arrays(new), metrics

    def forget(self, nodes: Sequence[int]) -> None:
        """Let all clients begin anew: h is the mean of all g_k, lost ones included."""
        logger.warning("all gradients are zero again, as node %d has lost its own", nodes[0])
        self.accepted, self.h = {}, {}


def _pull(reply: Message) -> dict[str, Tensor] | None:
    """What a client keeps out of its gradient, taken out of its reply; None if nothing."""
    record = reply.content.pop(DYN_PULL, None)
    return messages.to_tensors(record) if isinstance(record, ArrayRecord) else None
