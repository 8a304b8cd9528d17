"""Networks for images, each of any width and depth.

A builder takes the shape of an image ``(C, H, W)`` and the number of classes, then its own
arguments by name; the defaults stand in ``conf/model/``. ``width`` multiplies the channels or
units of all hidden layers.
"""

from __future__ import annotations

from torch import nn

from fedwsa import seeding
from fedwsa.components import Component, build

ImageShape = tuple[int, int, int]
"""Channels, height, width."""


def scaled(units: int, width: float) -> int:
    """Units of a hidden layer at this width, at least one."""
    return max(1, round(units * width))


def require_side(image: ImageShape, side: int, model: str) -> None:
    """Refuse images that a model would shrink to nothing.

    Raises
    ------
    ValueError
        Names the smallest side that works.
    """
    if min(image[1:]) < side:
        raise ValueError(
            f"{model} needs images of at least {side}x{side} pixels; these are "
            f"{image[1]}x{image[2]}: take a smaller depth or another model"
        )


def build_model(
    component: Component, image: ImageShape, classes: int, seed: int, where: str = "model"
) -> nn.Module:
    """The network that the configuration names, with initial weights keyed by ``seed``.

    ``where`` is the key to blame.

    Raises
    ------
    ConfigError
        If an argument is wrong or the images are too small for it.
    """
    with seeding.seeded(seed, "model"):
        model: nn.Module = build(component, where, image, classes)
    return model
