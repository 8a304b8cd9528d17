"""VGG networks for small images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import PositiveFloat
from torch import nn

from fedwsa.models import ImageShape, require_side, scaled
from fedwsa.models.architecture import Architecture, Axes, Axis, described
from fedwsa.models.norms import Norm, norm_layer
from fedwsa.models.units import chain

# Convolutions before each of the five halvings; three linear layers complete the depth.
_STAGES: dict[int, tuple[int, ...]] = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
}


def _axes(model: nn.Module) -> Axes:
    """The first dense layer reads flattened channels."""
    last = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    dense = model.get_submodule("dense0")
    assert isinstance(dense, nn.Linear)
    return {"dense0.weight": {1: Axis(inner=dense.in_features // last.out_channels)}}


@described(
    Architecture(
        groups={
            "conv": r"^stage(0_conv[1-9]|[1-9]_conv\d)\.weight$",
            "dense": r"^dense[01]\.weight$",
        },
        blocks=r"^stage\d_conv([1-9])\.",
        axes=_axes,
        units=lambda model: chain(model, _axes(model)),
    )
)
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
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = image[0]
    for stage, (count, base) in enumerate(
        zip(_STAGES[depth], (64, 128, 256, 512, 512), strict=True)
    ):
        for i in range(count):
            out, name = scaled(base, width), f"stage{stage}_conv{i}"
            layers[name] = nn.Conv2d(channels, out, 3, padding=1, bias=norm == "none")
            if norm != "none":
                layers[f"{name}_norm"] = norm_layer(norm, out)
            layers[f"{name}_relu"] = nn.ReLU()
            channels = out
        layers[f"stage{stage}_pool"] = nn.MaxPool2d(2)
    units = channels * (image[1] // 32) * (image[2] // 32)
    hidden = scaled(512, width)
    layers["flatten"] = nn.Flatten()
    layers["dense0"], layers["dense0_relu"] = nn.Linear(units, hidden), nn.ReLU()
    layers["dense1"], layers["dense1_relu"] = nn.Linear(hidden, hidden), nn.ReLU()
    layers["head"] = nn.Linear(hidden, classes)
    return nn.Sequential(layers)
