"""Small convolutional networks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat
from torch import nn

from fedwsa.models import ImageShape, require_side, scaled

Depth = Annotated[int, Field(ge=1, le=12)]


def cnn(image: ImageShape, classes: int, *, width: PositiveFloat, depth: Depth) -> nn.Module:
    """LeNet-like: ``depth`` times (5x5 convolution, ReLU, halving), then a dense layer of 128.

    Channels are 16·width at first and double at each halving.
    """
    require_side(image, 2**depth, "cnn")
    layers: list[nn.Module] = []
    channels, height, wide = image
    for stage in range(depth):
        out = scaled(16 * 2**stage, width)
        layers += [nn.Conv2d(channels, out, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
        channels, height, wide = out, height // 2, wide // 2
    hidden = scaled(128, width)
    dense = nn.Linear(channels * height * wide, hidden)
    return nn.Sequential(*layers, nn.Flatten(), dense, nn.ReLU(), nn.Linear(hidden, classes))


def cnn_pfl(image: ImageShape, classes: int, *, width: PositiveFloat, depth: Depth) -> nn.Module:
    """The CNN of the CIFAR-10 benchmark of pfl-research, 1,626,442 parameters at 3x32x32.

    ``depth`` (there 2) unpadded 3x3 convolutions of 32, 64, … channels with ReLU, one halving,
    dropout 0.25, a dense layer of 128 with ReLU, dropout 0.5, the classifier.
    """
    require_side(image, 2 * depth + 2, "cnn_pfl")
    layers: list[nn.Module] = []
    channels = image[0]
    for stage in range(depth):
        out = scaled(32 * 2**stage, width)
        layers += [nn.Conv2d(channels, out, 3), nn.ReLU()]
        channels = out
    height, wide = ((side - 2 * depth) // 2 for side in image[1:])
    hidden = scaled(128, width)
    return nn.Sequential(
        *layers,
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(channels * height * wide, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, classes),
    )
