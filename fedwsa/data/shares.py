"""Which samples each client has: one array for all, however many clients there are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]


class Shares(Sequence[Indices]):
    """The samples of client 0, 1, …, a view for each.

    A million clients are then two arrays instead of a million objects.

    Parameters
    ----------
    indices
        Those of client 0, then those of client 1, and so on.
    sizes
        How many each client has.
    """

    def __init__(self, indices: ArrayLike, sizes: ArrayLike) -> None:
        self.indices = np.asarray(indices, dtype=np.int64)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self._ends = np.cumsum(self.sizes)
        flat = self.indices.ndim == self.sizes.ndim == 1 and (self.sizes >= 0).all()
        if not flat or len(self.indices) != int(self.sizes.sum()):
            raise ValueError("there must be as many indices as the sizes add up to")

    @classmethod
    def of(cls, arrays: Iterable[Indices]) -> Shares:
        """From an array for each client."""
        each = list(arrays)
        if not each:
            return cls(np.arange(0), np.arange(0))
        return cls(np.concatenate(each), [len(array) for array in each])

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, client: int) -> Indices: ...

    @overload
    def __getitem__(self, client: slice) -> list[Indices]: ...

    def __getitem__(self, client: int | slice) -> Indices | list[Indices]:
        if isinstance(client, slice):
            return [self[k] for k in range(*client.indices(len(self)))]
        end = int(self._ends[client])
        return self.indices[end - int(self.sizes[client]) : end]

    @property
    def owners(self) -> Indices:
        """The client of each of the indices."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def sorted(self) -> Shares:
        """The same samples at the same clients, each client's ascending."""
        return Shares(self.indices[np.lexsort((self.indices, self.owners))], self.sizes)

    @property
    def hash(self) -> str:
        """SHA-256 over each client's number of samples and their indices."""
        words = np.insert(self.indices, self._ends - self.sizes, self.sizes)
        return hashlib.sha256(words.astype("<i8").tobytes()).hexdigest()
