"""A data set of noise, made in a millisecond: only its size matters.

In a file of its own, since a cache's key reads all that a data set's module imports.
"""

from __future__ import annotations

import torch

from fedwsa.data.examples import Examples
from fedwsa.data.images import ImageData
from fedwsa.data.loading import Source


def small_images() -> Source:
    """Ninety colour images of ten classes, 32 pixels a side."""

    def decode() -> ImageData:
        pixels = torch.randint(
            0, 256, (90, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        examples = Examples(pixels, torch.arange(90) % 10)
        return ImageData.of(examples, Examples(pixels.clone(), examples.labels.clone()))

    return Source("small-images", decode)
