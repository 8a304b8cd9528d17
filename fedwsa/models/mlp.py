"""A stack of fully connected layers."""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from pydantic import NonNegativeInt, PositiveFloat
from torch import nn

from fedwsa.models import ImageShape, SeriesShape, scaled
from fedwsa.models.architecture import Architecture, described
from fedwsa.models.units import chain


@described(
    Architecture(
        groups={"hidden": r"^hidden[1-9]\d*\.weight$"},  # the first one is as wide as an example
        blocks=r"^hidden([1-9]\d*)\.",
        units=chain,
    )
)
def mlp(
    shape: ImageShape | SeriesShape, classes: int, *, width: PositiveFloat, depth: NonNegativeInt
) -> nn.Module:
    """``depth`` hidden layers of 200·width units with ReLU (zero: a linear classifier)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    units = prod(shape)
    for i in range(depth):
        hidden = scaled(200, width)
        layers[f"hidden{i}"], layers[f"relu{i}"] = nn.Linear(units, hidden), nn.ReLU()
        units = hidden
    layers["head"] = nn.Linear(units, classes)
    return nn.Sequential(layers)
