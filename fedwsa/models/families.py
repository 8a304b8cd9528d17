"""Families of timm's networks that have sizes: what width and depth are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fedwsa.models import scaled
from fedwsa.models.architecture import Architecture
from fedwsa.models.transformer import TRANSFORMER

_NEAR = 0.02  # of a head: a third is written 0.33


@dataclass(frozen=True)
class Family:
    """Networks that one module of timm makes.

    Attributes
    ----------
    architecture : Architecture
        How their weights hang together.
    settings : callable
        (network as it is, width, depth) → what timm is told to make the one that is wanted.
    finish : callable
        (network, network as it is, width) changes what timm cannot be told.
    """

    architecture: Architecture
    settings: Callable[[Any, float, int | None], dict[str, Any]]
    finish: Callable[[Any, Any, float], None] = lambda model, usual, width: None


def _transformer(usual: Any, width: float, depth: int | None) -> dict[str, Any]:
    """Units by whole heads, so that a head is the same in every width; ``depth`` blocks."""
    attention = usual.blocks[0].attn
    heads = round(attention.num_heads * width)
    if heads < 1 or abs(heads - attention.num_heads * width) > _NEAR:
        raise ValueError(
            f"width={width:g} of {attention.num_heads} heads are no whole heads; take a multiple "
            f"of {1 / attention.num_heads:.3g}"
        )
    units = usual.embed_dim // attention.num_heads * heads
    return {"embed_dim": units, "num_heads": heads, "depth": depth or len(usual.blocks)}


def _stages(usual: Any, width: float, depth: int | None) -> dict[str, Any]:
    """Channels times the width; ``depth`` blocks in each stage."""
    dims = [scaled(info["num_chs"], width) for info in usual.feature_info]
    depths = [depth or len(stage.blocks) for stage in usual.stages]
    return {"dims": tuple(dims), "depths": tuple(depths)}


def _residual(usual: Any, width: float, depth: int | None) -> dict[str, Any]:
    """Channels times the width, the stem's too; ``depth`` blocks in each stage."""
    stages = [usual.layer1, usual.layer2, usual.layer3, usual.layer4]
    channels = [info["num_chs"] // type(stages[0][0]).expansion for info in usual.feature_info[1:]]
    found: dict[str, Any] = {
        "channels": tuple(scaled(count, width) for count in channels),
        "layers": tuple(depth or len(stage) for stage in stages),
    }
    if isinstance(usual.conv1, nn.Sequential):  # a deep stem, twice as wide at its end
        found["stem_width"] = scaled(usual.bn1.num_features // 2, width)
    return found


def _plain_stem(model: Any, usual: Any, width: float) -> None:
    """Scale a stem of one convolution, which timm makes of 64 channels whatever it is told."""
    if isinstance(usual.conv1, nn.Sequential) or width == 1.0:
        return
    channels, first = scaled(usual.conv1.out_channels, width), model.layer1[0]
    model.conv1 = convolution_like(model.conv1, model.conv1.in_channels, channels)
    model.bn1 = type(model.bn1)(channels)
    first.conv1 = convolution_like(first.conv1, channels, first.conv1.out_channels)
    made = [model.conv1, first.conv1]
    if usual.layer1[0].downsample is None:  # what it reads is as wide as what it gives
        first.downsample = None
    else:
        old = first.downsample[0]
        first.downsample[0] = convolution_like(old, channels, old.out_channels)
        made.append(first.downsample[0])
    for layer in made:  # as timm does
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def convolution_like(old: nn.Conv2d, channels: int, out: int) -> nn.Conv2d:
    """A new one with other channels."""
    return nn.Conv2d(
        channels,
        out,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )


FAMILIES: Mapping[str, Family] = {
    "vision_transformer": Family(replace(TRANSFORMER, head=r"(norm|fc_norm|head)\."), _transformer),
    "convnext": Family(
        Architecture(
            groups={
                "mlp.fc1": r"^stages\.\d\.blocks\.\d+\.mlp\.fc1\.weight$",
                "mlp.fc2": r"^stages\.\d\.blocks\.\d+\.mlp\.fc2\.weight$",
            },
            blocks=r"^stages\.\d\.blocks\.(\d+)\.",
            classifier="head.fc.",
        ),
        _stages,
    ),
    "resnet": Family(
        Architecture(
            # Kernels of one number are of one size, in basic blocks as in bottlenecks.
            groups={f"conv{i}": rf"^layer\d\.\d+\.conv{i}\.weight$" for i in (1, 2, 3)},
            blocks=r"^layer\d\.([1-9]\d*)\.",  # the first block of a stage changes the width
            head=r"fc\.",
            classifier="fc.",
        ),
        _residual,
        _plain_stem,
    ),
}
"""By the module of timm that makes them."""
