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
from numpy.typing import NDArray


def key(seed: int, purpose: str, *parts: int) -> int:
    """A 63-bit seed for one purpose, for instance ``key(seed, "train", round, client)``."""
    low, high = np.random.SeedSequence(_entropy(seed, purpose, *parts)).generate_state(2)
    return (int(high) << 32 | int(low)) >> 1


def _entropy(seed: int, purpose: str, *parts: int) -> list[int]:
    # The count of parts is among them, since SeedSequence takes trailing zeros for nothing.
    return [seed, zlib.crc32(purpose.encode()), len(parts), *parts]


def keys(seed: int, purpose: str, *parts: int | range) -> NDArray[np.int64]:
    """:func:`key` for many at once: the last part is a range of numbers below 2³².

    The mixing of NumPy's ``SeedSequence``, which its documentation promises to keep, on arrays: a
    million take a tenth of a second, of which one by one they take ten.

    Source: O'Neill, Developing a seed_seq alternative, 2015.
    """
    *fixed, last = parts
    assert isinstance(last, range)
    numbers = [part for part in fixed if isinstance(part, int)]
    words = [w for n in _entropy(seed, purpose, *numbers, 0)[:-1] for w in _words(n)]
    pool = _Mixing(0x43B0D7E5, 0x931E8875)
    sources: list[_Words] = [np.uint32(word) for word in words]
    sources.append(np.asarray(last, dtype=np.uint32))
    zero = np.uint32(0)
    mixed = [pool.hashed(sources[i] if i < len(sources) else zero) for i in range(_POOL)]
    for source in range(_POOL):
        for place in range(_POOL):
            if place != source:
                mixed[place] = _mix(mixed[place], pool.hashed(mixed[source]))
    for value in sources[_POOL:]:
        mixed = [_mix(each, pool.hashed(value)) for each in mixed]
    drawn = _Mixing(0x8B51F9DD, 0x58F38DED)
    low, high = (drawn.hashed(mixed[i]).astype(np.uint64) for i in range(2))
    return ((high << np.uint64(32) | low) >> np.uint64(1)).astype(np.int64)


_POOL = 4  # words of a SeedSequence
_Words = np.uint32 | NDArray[np.uint32]


def _words(number: int) -> list[int]:
    """A number in 32-bit words, the lowest first."""
    found = [number & 0xFFFFFFFF]
    while number := number >> 32:
        found.append(number & 0xFFFFFFFF)
    return found


class _Mixing:
    """SeedSequence's hash, whose constant is another at each call."""

    def __init__(self, first: int, factor: int) -> None:
        self._constant, self._factor = first, factor

    def hashed(self, value: _Words) -> NDArray[np.uint32]:
        """A word, or many, mixed."""
        mixed = np.atleast_1d(value) ^ np.uint32(self._constant)
        self._constant = self._constant * self._factor & 0xFFFFFFFF
        mixed = mixed * np.uint32(self._constant)
        return mixed ^ mixed >> np.uint32(16)


def _mix(x: NDArray[np.uint32], y: NDArray[np.uint32]) -> NDArray[np.uint32]:
    mixed: NDArray[np.uint32] = np.uint32(0xCA01F9DD) * x - np.uint32(0x4973F715) * y
    return mixed ^ mixed >> np.uint32(16)


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
            elif torch.backends.mps.is_available():
                torch.mps.manual_seed(value)
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
