"""A stack of fully connected layers."""

from __future__ import annotations

from math import prod

from pydantic import NonNegativeInt, PositiveFloat
from torch import nn

from fedwsa.models import ImageShape, scaled


def mlp(
    image: ImageShape, classes: int, *, width: PositiveFloat, depth: NonNegativeInt
) -> nn.Module:
    """``depth`` hidden layers of 200·width units with ReLU (zero: a linear classifier)."""
    layers: list[nn.Module] = [nn.Flatten()]
    units = prod(image)
    for _ in range(depth):
        hidden = scaled(200, width)
        layers += [nn.Linear(units, hidden), nn.ReLU()]
        units = hidden
    return nn.Sequential(*layers, nn.Linear(units, classes))
