"""The digits with pixels of 4x4: 32 a side, as networks for photographs want them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits


def large_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels ``(1797, 32, 32)`` and labels."""
    bunch = load_digits()
    pixels = np.kron(np.round(bunch.images * 255 / 16), np.ones((4, 4))).astype(np.uint8)
    return pixels, bunch.target
