"""SCAFFOLD, the server half of :class:`fedwsa.algorithms.scaffold.client.Scaffold`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.memory.server import Remembering
from fedwsa.algorithms.run_facts import RunFacts, require_no_noise
from fedwsa.algorithms.sizes.server import Weighted
from fedwsa.algorithms.traits import Traits
from fedwsa.scope.weight_scope import choose
from fedwsa.wire import messages
from fedwsa.wire.names import SCAFFOLD_CHANGE, SCAFFOLD_CONTROL

logger = logging.getLogger("fedwsa")


class Scaffold(Remembering):
    """Federated averaging with control variates against the drift of the clients.

    The server's control variate c goes with the model; clients correct their gradients with it
    and answer how theirs changed: c ← c + (|S|/N)·mean(c_i⁺ − c_i), so that c = Σ p_i c_i over all
    N clients, those that nobody has seen yet with c_i = 0. Models are averaged with the same p_i:
    it minimises Σ p_i f_i.

    Source: arXiv 1910.06378, algorithm 1 with a global step size of one; there p_i = 1/N. Ours:
    p_i by examples, n_i/Σ n_k. Of clients whose number nobody knows yet the mean of the others
    stands in the sum, which makes no difference once all have been seen.

    Parameters
    ----------
    weighted : {"examples", "clients"}
        Whether a client counts by its examples, as under FedAvg, or each client once, as in the
        paper.
    untrained
        Names of arrays that no client trains (frozen layers, statistics of BatchNorm): they are
        only averaged, and have no control variate.
    sampling
        As for Flower's FedAvg.
    """

    traits: ClassVar[Traits] = replace(
        Remembering.traits,
        wants=("untrained",),
        needs_sgd=True,
        whole_models=False,
        answers=((SCAFFOLD_CONTROL, SCAFFOLD_CHANGE),),
        requires=True,
    )

    def __init__(
        self,
        *,
        weighted: Weighted = "examples",
        untrained: Sequence[str] = (),
        **sampling: Unpack[Sampling],
    ) -> None:
        super().__init__(**sampling)
        self.weighted = choose(Weighted, weighted, "weighted")
        self.untrained = frozenset(untrained)
        self._counts: dict[int, float] = {}  # what clients count, by node
        self._total: dict[str, Tensor] = {}  # Σ n_i c_i
        self.control: dict[str, Tensor] | None = None
        self._nodes = 0

    def require(self, run: RunFacts) -> None:
        """Refuse a private run: the changes of control variates have no noise."""
        require_no_noise(self, run)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Add the control variate to what FedAvg sends."""
        if self.control is None:
            tensors = messages.to_tensors(arrays)
            self.control = {
                k: torch.zeros_like(t) for k, t in tensors.items() if k not in self.untrained
            }
        self._nodes = len(list(grid.get_nodes()))  # away or not: N is the whole fleet
        record = messages.to_arrays(self.control)
        configured = list(super().configure_train(server_round, arrays, config, grid))
        messages.change_contents(
            configured, lambda plain: RecordDict({**plain, SCAFFOLD_CONTROL: record})
        )
        return configured

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the models, and move the control variate.

        Raises
        ------
        ValueError
            If a reply lacks the change of the client's control variate.
        """
        given = [self._counted(reply) for reply in self.accept(server_round, replies)]
        total = dict(self._total)
        for reply in given:
            if not reply.has_content():
                continue
            change = reply.content.pop(SCAFFOLD_CHANGE, None)
            if not isinstance(change, ArrayRecord):
                raise ValueError(
                    "a client does not report the change of its control variate; "
                    "it must train with fedwsa.algorithms.scaffold.client.Scaffold"
                )
            if reply.metadata.src_node_id not in self.accepted:  # forgotten in this round
                continue
            [metrics] = messages.reply_metrics([reply])
            # n_i as it was at first: c_i then counts in the sum by one number.
            count = self._counts.setdefault(
                reply.metadata.src_node_id, messages.number(metrics, self.weighted_by_key)
            )
            # New tensors: the old ones may still be on their way.
            for name, tensor in messages.to_tensors(change).items():
                moved = count * tensor.double()
                total[name] = total[name] + moved if name in total else moved
        assert self.control is not None
        if self._counts:
            self._total, mean = total, sum(self._counts.values()) / len(self._counts)
            self.control = {
                name: (total[name] / (self._nodes * mean)).to(c.dtype) if name in total else c
                for name, c in self.control.items()
            }
        return super().aggregate_train(server_round, given)

    def forget(self, nodes: Sequence[int]) -> None:
        """Let all clients begin anew: c is the sum of all c_i, lost ones included."""
        logger.warning("all control variates are zero again, as node %d has lost its own", nodes[0])
        assert self.control is not None
        self.accepted, self._total = {}, {}
        self.control = {name: torch.zeros_like(c) for name, c in self.control.items()}

    def _counted(self, reply: Message) -> Message:
        """A reply of its own to change, counting once where that is wished."""
        if not reply.has_content():
            return reply
        counted = copy.copy(reply)
        counted.content = content = RecordDict({**reply.content})
        if self.weighted == "clients":
            for name, metrics in reply.content.metric_records.items():
                content[name] = MetricRecord({**metrics, self.weighted_by_key: 1})
        return counted
