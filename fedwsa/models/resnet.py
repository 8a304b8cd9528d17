"""Residual networks for small images, from torchvision's blocks."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from pydantic import PositiveFloat, PositiveInt
from torch import nn

from fedwsa.models import ImageShape, require_side, scaled
from fedwsa.models.architecture import Architecture, described
from fedwsa.models.norms import Norm, norm_layer
from fedwsa.models.torchvision_loader import torchvision
from fedwsa.models.units import residual


@described(
    Architecture(
        groups={
            "conv": r"^stage\d\.\d+\.conv\d\.weight$",
            "shortcut": r"^stage\d\.\d+\.downsample\.0\.weight$",
        },
        blocks=r"^stage\d\.([1-9]\d*)\.",  # the first block of a stage may change the width
        units=residual,
    )
)
def resnet(
    image: ImageShape, classes: int, *, width: PositiveFloat, depth: PositiveInt, norm: Norm
) -> nn.Module:
    """The CIFAR network of the paper: three stages of n basic blocks, depth = 6n + 2.

    Channels 16, 32, 64, times ``width``.

    Source: arXiv 1512.03385, section 4.2 (with projections in the shortcuts).
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n+2 (8, 14, 20, 32, ...); got {depth}")
    require_side(image, 4, "resnet")
    make_norm = partial(norm_layer, norm)
    channels = scaled(16, width)
    stem = nn.Conv2d(image[0], channels, 3, padding=1, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=stem, norm=make_norm(channels), relu=nn.ReLU()
    )
    for stage in range(3):
        out = scaled(16 * 2**stage, width)
        made: list[nn.Module] = []
        for block in range(blocks):
            stride = 2 if stage and block == 0 else 1
            shortcut = None
            if stride != 1 or channels != out:
                conv = nn.Conv2d(channels, out, 1, stride, bias=False)
                shortcut = nn.Sequential(conv, make_norm(out))
            made.append(
                torchvision.models.resnet.BasicBlock(
                    channels, out, stride, shortcut, norm_layer=make_norm
                )
            )
            channels = out
        layers[f"stage{stage}"] = nn.Sequential(*made)
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["head"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)
