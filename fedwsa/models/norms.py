"""Normalisation layers by name."""

from __future__ import annotations

from math import gcd
from typing import Literal

from torch import nn

Norm = Literal["none", "group", "batch", "static"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A norm over ``channels``.

    ``group``: GroupNorm with up to 8 groups that divide them; ``batch``: BatchNorm; ``static``:
    BatchNorm by the statistics of the batch at hand, in evaluation too, as HeteroFL trains
    (arXiv 2010.01264): nothing is kept that clients of several sizes would have to share.
    """
    if norm == "group":
        return nn.GroupNorm(gcd(8, channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "static":
        return nn.BatchNorm2d(channels, track_running_stats=False)
    return nn.Identity()
