"""pFedMe, the client half of :class:`fedwsa.algorithms.pfedme.server.PFedMe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedwsa.algorithms.beside.client import OwnModel
from fedwsa.algorithms.objective import GradientAt, LocalRun, Weights
from fedwsa.wire.content import Content


class MoreauEnvelope(OwnModel):
    """Train the envelope min_θ f(θ) + (λ/2)·‖θ − w‖² of the client's loss, and keep its θ.

    On each batch, θ takes a few steps of gradient descent from w to the minimum; the gradient of
    the envelope, which w follows, is then λ·(w − θ).

    Source: Personalized Federated Learning with Moreau Envelopes, arXiv 2006.08848, algorithm 1.
    """

    settings: ClassVar[str] = "pfedme"

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        super().__init__(model, content, local)
        told = content[self.settings]
        self._pull, self._rate = float(told["pull"]), float(told["rate"])
        self._steps = int(told["steps"])

    @classmethod
    @torch.no_grad()
    def descend(
        cls,
        objectives: Sequence[Self],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        gradient_at: GradientAt,
    ) -> None:
        """Find θ, and replace the gradients by those of the envelope."""
        first, own = objectives[0], cls.stacked(objectives)["model"]
        for k, weight in weights.items():
            own[k].copy_(weight)
        found: Mapping[str, Tensor] = gradients  # at w, they are there already
        for step in range(first._steps):
            if step:
                found = gradient_at(own)
            for k, g in found.items():
                own[k].sub_(first._rate * (g + first._pull * (own[k] - weights[k])))
        for k, g in gradients.items():
            g.copy_(first._pull * (weights[k] - own[k]))
