"""VGG networks for small images."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat
from torch import nn

from fedwsa.models import ImageShape, require_side, scaled
from fedwsa.models.norms import Norm, norm_layer

# Convolutions before each of the five halvings; three linear layers complete the depth.
_STAGES: dict[int, tuple[int, ...]] = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
}


def vgg(
    image: ImageShape,
    classes: int,
    *,
    width: PositiveFloat,
    depth: Literal[8, 11, 13, 16],
    norm: Norm,
) -> nn.Module:
    """VGG of 8, 11, 13 or 16 weight layers: 3x3 convolutions, five halvings, three dense layers.

    Channels 64, 128, 256, 512, 512 and dense layers of 512, times ``width``; the original's
    4096 units are for images of 224 pixels.

    Source: arXiv 1409.1556.
    """
    require_side(image, 32, f"vgg{depth}")
    layers: list[nn.Module] = []
    channels = image[0]
    for count, base in zip(_STAGES[depth], (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            out = scaled(base, width)
            layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=norm == "none"))
            if norm != "none":
                layers.append(norm_layer(norm, out))
            layers.append(nn.ReLU())
            channels = out
        layers.append(nn.MaxPool2d(2))
    units = channels * (image[1] // 32) * (image[2] // 32)
    hidden = scaled(512, width)
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(units, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
