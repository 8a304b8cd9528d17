"""Normalisation layers by name."""

from __future__ import annotations

from math import gcd
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import batch_norm

Norm = Literal["none", "group", "batch", "static"]


class StaticBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that gathers nothing in training: its statistics are measured before a score.

    In training it normalises by the batch at hand. :func:`fedwsa.models.batch_norm.reestimate`
    measures the statistics of the weights as they are on training images; in evaluation it then
    normalises by these, whatever else is in the batch. Clients of several sizes have none in
    common: they belong to one network, and do not travel.

    Until they are measured it normalises by the batch in evaluation too; such a network is not
    scored (:func:`fedwsa.data.evaluation.evaluate`).

    Parameters
    ----------
    channels : int
        Inputs have the shape ``(N, channels, H, W)``.

    Source: HeteroFL, arXiv 2010.01264.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.0)

    @property
    def measured(self) -> bool:
        """Whether there are statistics."""
        count = self.num_batches_tracked
        return count is not None and not count.is_meta and bool(count)

    def forward(self, input: Tensor) -> Tensor:
        """As BatchNorm; who measures sets the momentum to None."""
        gathers = self.training and self.momentum is None
        if gathers or (not self.training and self.measured):
            return super().forward(input)
        self._check_input_dim(input)
        return batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)


def static_norms(model: nn.Module) -> dict[str, StaticBatchNorm2d]:
    """The static norms of a network, by name."""
    return {k: m for k, m in model.named_modules() if isinstance(m, StaticBatchNorm2d)}


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A norm over ``channels``.

    ``group``: GroupNorm with up to 8 groups that divide them; ``batch``: BatchNorm; ``static``:
    :class:`StaticBatchNorm2d`.
    """
    if norm == "group":
        return nn.GroupNorm(gcd(8, channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "static":
        return StaticBatchNorm2d(channels)
    return nn.Identity()
