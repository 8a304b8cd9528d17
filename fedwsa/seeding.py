"""Random numbers that depend on what they are for, not on who draws first.

Every stream is keyed by (seed, purpose, …), so that the number of workers, the order of
replies or a resumed run cannot change a result.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def key(seed: int, purpose: str, *parts: int) -> int:
    """A 63-bit seed for one purpose, for instance ``key(seed, "train", round, client)``."""
    # The count of parts is among them, since SeedSequence takes trailing zeros for nothing.
    entropy = [seed, zlib.crc32(purpose.encode()), len(parts), *parts]
    low, high = np.random.SeedSequence(entropy).generate_state(2)
    return (int(high) << 32 | int(low)) >> 1


def generator(seed: int, purpose: str, *parts: int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(key(seed, purpose, *parts))


@contextmanager
def seeded(seed: int, purpose: str, *parts: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch, and put them back afterwards.

    For code that is not ours and draws from them: Flower's sampling, its privacy noise, dropout.
    """
    python, numpy, value = random.getstate(), np.random.get_state(), key(seed, purpose, *parts)
    try:
        with torch.random.fork_rng():
            random.seed(value)
            np.random.seed(value % 2**32)
            # Not torch.manual_seed, which without a GPU formats the whole stack each time.
            torch.default_generator.manual_seed(value)
            if torch.cuda.is_available():
                torch.cuda.manual_seed_all(value)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def noise(seed: int, kind: str, purpose: str, *parts: int) -> Iterator[None]:
    """As :func:`seeded`, around code that draws noise for privacy.

    Keyed noise repeats, and whoever knows the seed can subtract it; of kind ``secret`` it is
    seeded by the operating system, and no run is the same again.
    """
    with seeded(seed, purpose, *parts):
        if kind == "secret":
            np.random.seed()
        yield
