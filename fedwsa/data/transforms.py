"""What is done to each image when it is decoded, by torchvision's names; nothing is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from PIL import Image

from fedwsa.config.component import ConfigError
from fedwsa.config.nearest import nearest
from fedwsa.data.decoding import Transform

# torchvision is imported where images are decoded: who has the cached tensors is spared it.

_KNOWN = ("CenterCrop", "Grayscale", "Pad", "RGB", "Resize")

Transforms = list[str | dict[str, Any]]
"""Names of transforms, or name → its arguments by name or its first one; done in this order."""


def transform_of(asked: Transforms | None) -> Transform | None:
    """What brings images into one form; None where nothing is named.

    Parameters
    ----------
    asked
        As ``[{Resize: 84}, Grayscale]`` or ``[{Resize: {size: [84, 84], antialias: true}}]``:
        ``CenterCrop``, ``Grayscale``, ``Pad``, ``RGB`` and ``Resize`` of
        ``torchvision.transforms.v2``.

    Raises
    ------
    ConfigError
        If there is no such transform, or it takes no such arguments.
    """
    if not asked:
        return None
    from fedwsa.models.torchvision_loader import torchvision

    known = import_module(f"{torchvision.__name__}.transforms.v2")
    steps = []
    for entry in asked:
        if isinstance(entry, dict) and len(entry) != 1:
            raise ConfigError(f"dataset.transform: {entry} must be one name and its arguments")
        name, given = (entry, None) if isinstance(entry, str) else next(iter(entry.items()))
        if name not in _KNOWN:
            raise ConfigError(
                f"dataset.transform: there is no {name}; {nearest(name, _KNOWN)}; what is drawn "
                "anew for each batch is dataset.augment"
            )
        keywords = given if isinstance(given, Mapping) else {}
        words = [given] if given is not None and not isinstance(given, Mapping) else []
        try:
            steps.append(getattr(known, name)(*words, **keywords))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"dataset.transform: {name}: {error}") from None

    def apply(image: Image.Image) -> Image.Image:
        for step in steps:
            image = step(image)
        return image

    return apply
