"""Normalisation layers by name."""

from __future__ import annotations

from math import gcd
from typing import Literal

from torch import nn

Norm = Literal["none", "group", "batch"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A norm over ``channels``: none, GroupNorm (up to 8 groups that divide them), BatchNorm."""
    if norm == "group":
        return nn.GroupNorm(gcd(8, channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.Identity()
