"""The proximal term, the client half of Flower's ``FedProx`` strategy."""

from __future__ import annotations

import torch
from torch import Tensor

from fedwsa.algorithms.objective import LocalRun, Objective, Weights, gradients, trainable
from fedwsa.wire.content import Content, find_record
from fedwsa.wire.names import PROXIMAL_MU


class Proximal(Objective):
    """Pull the local model back to the received one: + (μ/2)·‖w − w_g‖².

    Flower's ``FedProx`` announces μ as ``proximal-mu`` and leaves the term to the client.

    Source: Federated Optimization in Heterogeneous Networks, arXiv 1812.06127.
    """

    @torch.no_grad()
    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        config = find_record(content, PROXIMAL_MU)
        self.mu = 0.0 if config is None else float(config[PROXIMAL_MU])
        if self.mu:
            self._named = trainable(model)
            self._weights: list[Tensor] = list(self._named.values())
            self._received = [p.detach().clone() for p in self._weights]
            if local is not None:
                local.pulls.append(self.pull)

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server announced a μ that is not zero."""
        config = find_record(content, PROXIMAL_MU)
        return config is not None and float(config[PROXIMAL_MU]) != 0.0

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add μ·(w − w_g)."""
        if self.mu:
            torch._foreach_add_(gradients(self._weights), self._drift(), alpha=self.mu)

    @torch.no_grad()
    def pull(self) -> dict[str, Tensor]:
        """μ·(w − w_g), by name: it moves with the received model, and is of no client's loss."""
        added = torch._foreach_mul(self._drift(), self.mu)
        return dict(zip(self._named, added, strict=True))

    def _drift(self) -> list[Tensor]:
        return list(torch._foreach_sub(self._weights, self._received))
