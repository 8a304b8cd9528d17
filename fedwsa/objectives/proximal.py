"""The proximal term, the client half of Flower's ``FedProx`` strategy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedwsa import messages
from fedwsa.objectives import Content, find_record


class Proximal:
    """Pull the local model back to the received one: + (μ/2)·‖w − w_g‖².

    Flower's ``FedProx`` announces μ as ``proximal-mu`` and leaves the term to the client.

    Source: Federated Optimization in Heterogeneous Networks, arXiv 1812.06127.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, content: Content) -> None:
        config = find_record(content, messages.PROXIMAL_MU)
        self.mu = 0.0 if config is None else float(config[messages.PROXIMAL_MU])
        if self.mu:
            self._weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
            self._received = [p.detach().clone() for p in self._weights]

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add μ·(w − w_g)."""
        if not self.mu:
            return
        drift = torch._foreach_add(self._weights, self._received, alpha=-1)
        for weight in self._weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [w.grad for w in self._weights if w.grad is not None]
        torch._foreach_add_(gradients, drift, alpha=self.mu)

    def end(self) -> dict[str, float | list[float]]:
        """Nothing to report."""
        return {}
