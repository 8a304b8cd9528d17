"""Per-FedAvg, the client half of :class:`fedwsa.algorithms.per_fedavg.server.PerFedAvg`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedwsa.algorithms.objective import (
    GradientAt,
    LocalRun,
    Objective,
    State,
    TrainedOn,
    Weights,
    trainable,
)
from fedwsa.wire.content import Content


class MetaGradient(Objective):
    """Train the loss after a step: F(w) = f(w − α·∇f(w)), with ∇F(w) = (I − α·∇²f(w))·∇f(w⁺).

    First-order leaves ∇²f out. Hessian-free takes ∇²f(w)·g for (∇f(w + δg) − ∇f(w − δg))/2δ. The
    step to w⁺ and ∇²f are on the batches of the last two steps, so that the three are apart (where
    there is none before, on the same). A client is evaluated after a step of α on all its samples.

    Source: Personalized Federated Learning with Theoretical Guarantees, arXiv 2002.07948,
    algorithm 1 and section 5.
    """

    settings: ClassVar[str] = "per-fedavg"

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        told = content[self.settings]
        self._rate, self._first_order = float(told["rate"]), bool(told["first-order"])
        self._way = float(told["way"])
        self._before: list[GradientAt] = []  # of the last two batches, the newest first

    @classmethod
    @torch.no_grad()
    def descend(
        cls,
        objectives: Sequence[Self],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        gradient_at: GradientAt,
    ) -> None:
        """Replace the gradients by those of the loss after a step."""
        first = objectives[0]
        inner, *rest = [*first._before, gradient_at, gradient_at][:2]
        first._before = [gradient_at, *first._before][:2]
        ahead = _moved(weights, inner(weights), -first._rate)
        outer = gradient_at(ahead)
        for k, g in gradients.items():
            g.copy_(outer[k])
        if first._first_order:
            return
        [other] = rest
        forth, back = (other(_moved(weights, outer, way)) for way in (first._way, -first._way))
        for k, g in gradients.items():
            g.sub_(first._rate / (2 * first._way) * (forth[k] - back[k]))

    @classmethod
    def settle(cls, model: nn.Module, content: Content, state: State, samples: TrainedOn) -> None:
        """A step of α on the mean loss of all samples."""
        model.eval()
        model.zero_grad(set_to_none=True)
        for inputs, labels in samples.batches():
            share = len(labels) / len(samples.labels)
            torch.autograd.backward([cross_entropy(model(inputs).float(), labels) * share])
        rate = float(content[cls.settings]["rate"])
        with torch.no_grad():
            for weight in trainable(model).values():
                if weight.grad is not None:
                    weight.sub_(rate * weight.grad)
        model.zero_grad(set_to_none=True)


def _moved(
    weights: Mapping[str, Tensor], along: Mapping[str, Tensor], way: float
) -> dict[str, Tensor]:
    return {k: w + way * along[k] for k, w in weights.items()}
