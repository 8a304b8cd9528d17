"""Vision transformers for small images, from timm."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt
from torch import nn

import fedwsa.models.torchvision_loader  # noqa: F401

# isort: split
from timm.models.vision_transformer import VisionTransformer  # after it: timm takes torchvision

from fedwsa.models import ImageShape, scaled
from fedwsa.models.architecture import described
from fedwsa.models.transformer import TRANSFORMER, count_heads

UNITS, HEAD = 192, 24
"""Units at width 1, and of an attention head where ``heads`` is not given."""


@described(TRANSFORMER)
def vit(
    image: ImageShape,
    classes: int,
    *,
    width: PositiveFloat,
    depth: PositiveInt,
    heads: PositiveInt | None,
    patch: PositiveInt | None,
    mlp_ratio: PositiveFloat,
) -> nn.Module:
    """A vision transformer of 192·width units: patches, ``depth`` blocks, mean over patches, head.

    No class token: the mean over the patches is classified, which small data sets prefer.
    ``heads`` null: one for each 24 units, so that a head is the same in every width. ``patch``
    null: a quarter of the image's side.

    Source: arXiv 2010.11929; the network is timm's.
    """
    units = scaled(UNITS, width)
    patch = patch or max(1, min(image[1:]) // 4)
    if image[1] % patch or image[2] % patch:
        raise ValueError(f"patches of {patch} pixels do not fill images of {image[1]}x{image[2]}")
    count = count_heads(heads, width, UNITS, HEAD)
    model: nn.Module = VisionTransformer(
        img_size=image[1:],
        patch_size=patch,
        in_chans=image[0],
        num_classes=classes,
        embed_dim=units,
        depth=depth,
        num_heads=count,
        mlp_ratio=mlp_ratio,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )
    return model
