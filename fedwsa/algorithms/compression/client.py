"""A client that sends its update in fewer bits, and remembers what it left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fedwsa.algorithms.compression.rules import Sent
from fedwsa.algorithms.objective import LocalRun, Objective, Weights, trainable
from fedwsa.scope.moments import precise
from fedwsa.wire.content import Content
from fedwsa.wire.names import WIRE_BYTES

_STATE = "compression"
_FLOAT = 4  # bytes


class Compression(Objective):
    """Send C(u + e) of an update u, and keep e ← u + e − C(u + e) for the next one.

    What is not trained is sent whole. The reply has the arrays as the server would decompress
    them, and says how many bytes that took.

    Source of the memory: Sparsified SGD with Memory, arXiv 1809.07599, algorithm 1.

    Attributes
    ----------
    rule : callable
        Tensor and generator → :class:`~fedwsa.algorithms.compression.rules.Sent`.
    feedback : bool
        Whether there is a memory.
    rescale : bool
        Whether each weight tensor is moved and stretched to the mean and variance of the trained
        one, two numbers more (ours).
    """

    rule: ClassVar[Callable[[Tensor, torch.Generator], Sent]]
    feedback: ClassVar[bool]
    rescale: ClassVar[bool]

    @torch.no_grad()
    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if local is None or local.samples is None:
            raise ValueError("compression needs the client's state, and what draws for it")
        self._local, self._random = local, local.samples.generator("compression")
        self._begun = {name: precise(w.detach()).clone() for name, w in trainable(model).items()}
        self._bytes = 0.0

    @torch.no_grad()
    def share(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights as they arrive."""
        kept = self._local.state.get(_STATE, {}) if self.feedback else {}
        found, left, bits = dict(weights), dict[str, Tensor](), 0.0
        for name, trained in weights.items():
            if name not in self._begun:
                bits += 8 * _FLOAT * trained.numel()
                continue
            begun = self._begun[name]
            update = trained - begun
            if name in kept:
                update = update + kept[name].to(update)
            sent = type(self).rule(update, self._random)
            left[name] = update - sent.tensor
            found[name], bits = begun + sent.tensor, bits + sent.bits
            if self.rescale and trained.dim() > 1:
                found[name] = _as_wide(found[name], trained)
                bits += 2 * 8 * _FLOAT
        if self.feedback:
            self._local.state[_STATE] = left
        self._bytes = bits / 8
        return found

    def end(self) -> dict[str, float | list[float]]:
        """The bytes of the model on the wire."""
        return {WIRE_BYTES: self._bytes}


def _as_wide(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor with the mean and the variance of another."""
    spread = tensor.std(correction=0)
    factor = like.std(correction=0) / spread if spread > 0 else torch.ones_like(spread)
    return (tensor - tensor.mean()) * factor + like.mean()
