"""Time series of noise, in a file of its own as `small_images` is."""

from __future__ import annotations

import torch

from fedwsa.data.examples import Examples
from fedwsa.data.loading import Source
from fedwsa.data.measurements import Measurements


def small_series() -> Source:
    """Ninety series of two channels and 32 times, of ten classes."""

    def decode() -> Measurements:
        values = torch.randn(90, 2, 32, generator=torch.Generator().manual_seed(0))
        examples = Examples(values, torch.arange(90) % 10)
        return Measurements.of(examples, Examples(values.clone(), examples.labels.clone()), 10)

    return Source("small-series", decode)
