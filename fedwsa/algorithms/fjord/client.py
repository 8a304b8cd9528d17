"""Ordered dropout, the client half of :class:`fedwsa.algorithms.fjord.server.FjORD`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedwsa.algorithms.divergence import divergence
from fedwsa.algorithms.objective import ForwardPass, LocalRun, Objective, Weights, trainable
from fedwsa.wire.content import Content


class OrderedDropout(Objective):
    """In each step, also train a part of the network: of a size drawn among those up to its own.

    With self-distillation the loss is the task's, plus KL(p_own ‖ p_drawn) of the drawn part (α = T
    = 1 in the paper); without, it is the drawn part's alone.

    Source: FjORD, arXiv 2102.13451, section 3.
    """

    settings: ClassVar[str] = "fjord"
    stackable: ClassVar[bool] = False

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if local is None or local.samples is None or local.within is None:
            raise ValueError(
                "ordered dropout needs the client's samples, and networks of its sizes"
            )
        told = content[self.settings]
        self._distills = bool(told["distill"])
        self._weights = trainable(model)
        self._parts = [local.within(str(size)) for size in told["sizes"]]
        self._random = local.samples.generator("ordered dropout")

    def loss(self, seen: ForwardPass) -> Tensor:
        """What the drawn part adds; its own size, drawn as likely as another, adds nothing."""
        drawn = int(torch.randint(len(self._parts) + 1, (), generator=self._random))
        if drawn == len(self._parts):
            return torch.zeros_like(seen.labels, dtype=seen.logits.dtype)
        logits = seen.masked(self._parts[drawn](self._weights, seen.inputs))
        if self._distills:
            return divergence(seen.logits, logits, 1.0)
        part = cross_entropy(logits, seen.labels, reduction="none")
        return part - cross_entropy(seen.logits, seen.labels, reduction="none")
