"""SCAFFOLD, the server half of :class:`fedwsa.objectives.scaffold.Scaffold`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedwsa import messages
from fedwsa.strategies.averaging import Sampling


class Scaffold(FedAvg):
    """Federated averaging with control variates against the drift of the clients.

    The server's control variate c goes with the model; clients correct their gradients with it
    and answer how theirs changed: c ← c + (|S|/N)·mean(c_i⁺ − c_i). Models are averaged as
    FedAvg does.

    Source: arXiv 1910.06378, algorithm 1 with a global step size of one.

    Parameters
    ----------
    sampling
        As for Flower's FedAvg.
    """

    needs_sgd = True
    clients_remember = True  # their control variates

    def __init__(self, **sampling: Unpack[Sampling]) -> None:
        super().__init__(**sampling)
        self.control: dict[str, Tensor] | None = None
        self._nodes = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Add the control variate to what FedAvg sends."""
        if self.control is None:
            tensors = messages.to_tensors(arrays)
            self.control = {k: torch.zeros_like(t) for k, t in tensors.items()}
        self._nodes = len(list(grid.get_nodes()))  # away or not: N is the whole fleet
        record = messages.to_arrays(self.control)
        configured = list(super().configure_train(server_round, arrays, config, grid))
        messages.change_contents(
            configured, lambda plain: RecordDict({**plain, messages.SCAFFOLD_CONTROL: record})
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
        given = list(replies)
        changes: dict[str, Tensor] = {}
        for reply in given:
            if not reply.has_content():
                continue
            change = reply.content.pop(messages.SCAFFOLD_CHANGE, None)
            if not isinstance(change, ArrayRecord):
                raise ValueError(
                    "a client does not report the change of its control variate; "
                    "it must train with fedwsa.objectives.scaffold.Scaffold"
                )
            for name, tensor in messages.to_tensors(change).items():
                changes[name] = changes[name] + tensor if name in changes else tensor
        assert self.control is not None
        # (|S|/N)·mean is the sum over N. New tensors: the old ones may still be on their way.
        self.control = {
            name: c + changes[name] / self._nodes if name in changes else c
            for name, c in self.control.items()
        }
        return super().aggregate_train(server_round, given)
