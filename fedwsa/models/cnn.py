"""Small convolutional networks."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

from pydantic import Field, PositiveFloat
from torch import nn

from fedwsa.models import ImageShape, SeriesShape, require_side, scaled
from fedwsa.models.architecture import Architecture, Axes, Axis, described
from fedwsa.models.units import chain

Depth = Annotated[int, Field(ge=1, le=12)]


def _axes(model: nn.Module) -> Axes:
    """The dense layer reads flattened channels."""
    last = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)][-1]
    dense = model.get_submodule("dense")
    assert isinstance(dense, nn.Linear)
    return {"dense.weight": {1: Axis(inner=dense.in_features // last.out_channels)}}


# No block stands for another one: each has channels of its own.
_CNN = Architecture(
    groups={"conv": r"^conv[1-9]\d*\.weight$", "dense": r"^dense\.weight$"},
    axes=_axes,
    behind=r"(dense|head)\.",  # the dense layer reads what the last convolution leaves
    units=lambda model: chain(model, _axes(model)),
)


@described(_CNN)
def cnn(image: ImageShape, classes: int, *, width: PositiveFloat, depth: Depth) -> nn.Module:
    """LeNet-like: ``depth`` times (5x5 convolution, ReLU, halving), then a dense layer of 128.

    Channels are 16·width at first and double at each halving.
    """
    require_side(image, 2**depth, "cnn")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, height, wide = image
    for stage in range(depth):
        out = scaled(16 * 2**stage, width)
        layers[f"conv{stage}"] = nn.Conv2d(channels, out, 5, padding=2)
        layers[f"relu{stage}"], layers[f"pool{stage}"] = nn.ReLU(), nn.MaxPool2d(2)
        channels, height, wide = out, height // 2, wide // 2
    hidden = scaled(128, width)
    layers["flatten"] = nn.Flatten()
    layers["dense"], layers["relu"] = nn.Linear(channels * height * wide, hidden), nn.ReLU()
    layers["head"] = nn.Linear(hidden, classes)
    return nn.Sequential(layers)


@described(_CNN)
def cnn_pfl(image: ImageShape, classes: int, *, width: PositiveFloat, depth: Depth) -> nn.Module:
    """The CNN of the CIFAR-10 benchmark of pfl-research, 1,626,442 parameters at 3x32x32.

    ``depth`` (there 2) unpadded 3x3 convolutions of 32, 64, … channels with ReLU, one halving,
    dropout 0.25, a dense layer of 128 with ReLU, dropout 0.5, the classifier.
    """
    require_side(image, 2 * depth + 2, "cnn_pfl")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = image[0]
    for stage in range(depth):
        out = scaled(32 * 2**stage, width)
        layers[f"conv{stage}"], layers[f"relu{stage}"] = nn.Conv2d(channels, out, 3), nn.ReLU()
        channels = out
    height, wide = ((side - 2 * depth) // 2 for side in image[1:])
    hidden = scaled(128, width)
    layers["pool"], layers["dropout"] = nn.MaxPool2d(2), nn.Dropout(0.25)
    layers["flatten"] = nn.Flatten()
    layers["dense"], layers["relu"] = nn.Linear(channels * height * wide, hidden), nn.ReLU()
    layers["dense_dropout"] = nn.Dropout(0.5)
    layers["head"] = nn.Linear(hidden, classes)
    return nn.Sequential(layers)


@described(_CNN)
def cnn1d(series: SeriesShape, classes: int, *, width: PositiveFloat, depth: Depth) -> nn.Module:
    """``depth`` times (convolution over 5 times, ReLU, halving), then a dense layer of 128.

    Channels are 32·width at first and double at each halving.
    """
    channels, times = series
    if times < 2**depth:
        raise ValueError(
            f"cnn1d needs series of at least {2**depth} times; these have {times}: take a smaller "
            "depth, or for a table model=mlp"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage in range(depth):
        out = scaled(32 * 2**stage, width)
        layers[f"conv{stage}"] = nn.Conv1d(channels, out, 5, padding=2)
        layers[f"relu{stage}"], layers[f"pool{stage}"] = nn.ReLU(), nn.MaxPool1d(2)
        channels, times = out, times // 2
    hidden = scaled(128, width)
    layers["flatten"] = nn.Flatten()
    layers["dense"], layers["relu"] = nn.Linear(channels * times, hidden), nn.ReLU()
    layers["head"] = nn.Linear(hidden, classes)
    return nn.Sequential(layers)
