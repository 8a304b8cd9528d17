"""The work that all sides of the CNN workloads do: 50 of 1000 clients, 50 images each, an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

CLIENTS, SAMPLES, COHORT, BATCH = 1000, 50, 50, 10


def pool() -> tuple[Tensor, Tensor]:
    """Images as stored, ``(clients, samples, 3, 32, 32)``, uint8, and labels."""
    shape = (CLIENTS, SAMPLES, 3, 32, 32)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    return pixels, (torch.arange(CLIENTS * SAMPLES) % 10).view(CLIENTS, SAMPLES)
