"""VGG networks for small images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import PositiveFloat
from torch import nn

from fedwsa.models import ImageShape, require_side, scaled
from fedwsa.models.architecture import Architecture, described
from fedwsa.models.norms import Norm, norm_layer
from fedwsa.models.units import chain

# Convolutions before each of the five halvings. The numbers that name the networks count three
# dense layers, as the original has; here is one.
_STAGES: dict[int, tuple[int, ...]] = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
}


@described(
    Architecture(
        groups={"conv": r"^stage(0_conv[1-9]|[1-9]_conv\d)\.weight$"},
        blocks=r"^stage\d_conv([1-9])\.",
        units=chain,
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
    """VGG 8, 11, 13 or 16 of federated learning: 3x3 convolutions, five halvings, one classifier.

    Channels 64, 128, 256, 512, 512, times ``width``; the mean over what is left of the image (one
    pixel of 32x32) is classified by a linear layer without biases, and there are no other dense
    layers. Convolutions start normal with variance 2/fan_out, biases at zero: without norms torch's
    own start shrinks activations by 6 a layer, and the network does not learn. The classifier
    starts as torch has it (ours: the source does not say).

    Source: arXiv 1409.1556; the start arXiv 1502.01852; classifier and start as in the networks
    without norms of arXiv 2408.12237's authors.
    """
    require_side(image, 32, f"vgg{depth}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = image[0]
    for stage, (count, base) in enumerate(
        zip(_STAGES[depth], (64, 128, 256, 512, 512), strict=True)
    ):
        for i in range(count):
            out, name = scaled(base, width), f"stage{stage}_conv{i}"
            layers[name] = _convolution(channels, out, bias=norm == "none")
            if norm != "none":
                layers[f"{name}_norm"] = norm_layer(norm, out)
            layers[f"{name}_relu"] = nn.ReLU()
            channels = out
        layers[f"stage{stage}_pool"] = nn.MaxPool2d(2)
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["head"] = nn.Linear(channels, classes, bias=False)
    return nn.Sequential(layers)


def _convolution(channels: int, out: int, bias: bool) -> nn.Conv2d:
    made = nn.Conv2d(channels, out, 3, padding=1, bias=bias)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    if made.bias is not None:
        nn.init.zeros_(made.bias)
    return made
