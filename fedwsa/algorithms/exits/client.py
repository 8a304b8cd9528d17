"""The client half of :mod:`fedwsa.algorithms.exits.server`: classifiers that teach each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedwsa.algorithms.divergence import divergence
from fedwsa.algorithms.objective import ForwardPass, LocalRun, Objective, Weights
from fedwsa.models.exits import WithExits
from fedwsa.wire.content import Content

EXIT_LOSS = "early exits"


def mutual(logits: Sequence[Tensor], labels: Tensor, weight: float, temperature: float) -> Tensor:
    """Σ_i CE_i + w/(n−1)·Σ_i Σ_{j≠i} τ²·KL(p_j ‖ p_i) of n classifiers: all teach all.

    Returns
    -------
    Tensor
        Of each sample: ``(N, …)``.

    Source: DepthFL, ICLR 2023, equation 2; w there rises over the first rounds.
    """
    total = torch.stack([cross_entropy(z, labels, reduction="none") for z in logits]).sum(0)
    if weight and len(logits) > 1:
        for i, student in enumerate(logits):
            for j, teacher in enumerate(logits):
                if i != j:
                    apart = divergence(teacher, student, temperature)
                    total = total + weight / (len(logits) - 1) * apart
    return total


def last(logits: Sequence[Tensor], labels: Tensor, weight: float, temperature: float) -> Tensor:
    """2/(n(n+1))·Σ_i i·(CE_i + w·τ²·KL(p_n ‖ p_i)) of n classifiers: the last teaches the others.

    Returns
    -------
    Tensor
        Of each sample: ``(N, …)``.

    Source: ScaleFL, CVPR 2023, and its authors' code, where i weighs the i-th exit. There the
    teacher has a gradient too, and KL is a mean over the classes.
    """
    count = len(logits)
    total = torch.zeros_like(labels, dtype=logits[-1].dtype)
    for i, student in enumerate(logits, start=1):
        own = cross_entropy(student, labels, reduction="none")
        if weight and i < count:
            own = own + weight * divergence(logits[-1], student, temperature)
        total = total + 2 * i / (count * (count + 1)) * own
    return total


RULES: Mapping[str, Callable[[Sequence[Tensor], Tensor, float, float], Tensor]] = {
    "mutual": mutual,
    "last": last,
}
"""How classifiers learn from each other, by name."""


class ExitLosses(Objective):
    """Train all classifiers on the way by the loss of a rule, in the place of the last one's."""

    settings: ClassVar[str] = EXIT_LOSS
    stackable: ClassVar[bool] = False

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if not isinstance(model, WithExits):
            raise ValueError("the message asks for early exits, which the network has not")
        told = content[self.settings]
        self._model, self._rule = model, RULES[str(told["rule"])]
        self._weight, self._temperature = float(told["weight"]), float(told["temperature"])

    def loss(self, seen: ForwardPass) -> Tensor:
        """The rule's loss, less that of the task, which is there already."""
        logits = [*map(seen.masked, self._model.early(seen.inputs)), seen.logits]
        whole = self._rule(logits, seen.labels, self._weight, self._temperature)
        return whole - cross_entropy(seen.logits, seen.labels, reduction="none")
