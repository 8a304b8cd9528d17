"""How the arrays of several sizes lie in the global arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from fedwsa.models.architecture import Axis, Pick, first_units, selection

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Size → name of an array → its shape."""


class Layout:
    """Which entries of which global array each size has.

    Parameters
    ----------
    shapes
        Of all arrays that travel.
    axes
        (size, name) → how the units lie in an array of a size.
    key
        (size, name) → where the global arrays hold it; another key than the name is for those
        sizes alone that say so.
    most_alike
        What sizes must be, to be said of one that is not.

    Attributes
    ----------
    shapes
        As given, as tuples.
    largest : str
        The size with most entries.
    wholes : dict of str to tuple
        Shapes of the global arrays.

    Raises
    ------
    ValueError
        If there is no size, none is the largest, or a shape holds no whole units; the first misfit
        is named.
    """

    def __init__(
        self,
        shapes: Shapes,
        axes: Callable[[str, str], Mapping[int, Axis]],
        key: Callable[[str, str], str],
        most_alike: str,
    ) -> None:
        self.shapes = {s: {k: tuple(v) for k, v in of.items()} for s, of in shapes.items()}
        if not self.shapes:
            raise ValueError("at least one size is needed")
        self._axes, self._key = axes, key
        entries = {size: sum(map(math.prod, of.values())) for size, of in self.shapes.items()}
        self.largest = max(entries, key=lambda size: entries[size])
        self.wholes: dict[str, tuple[int, ...]] = {}
        for size in [self.largest, *self.shapes]:
            for name, shape in self.shapes[size].items():
                self.wholes.setdefault(key(size, name), shape)
        for size in self.shapes:
            if problem := self._misfit(size):
                raise ValueError(f"size {size} {problem}: {most_alike}")

    def _misfit(self, size: str) -> str | None:
        """Why a size is no part of the largest one; None if it is."""
        for name, shape in self.shapes[size].items():
            key = self._key(size, name)
            if key == name and name not in self.shapes[self.largest]:
                return f"has {name}, which {self.largest} lacks"
            room = self.wholes[key]
            if len(shape) != len(room) or any(a > b for a, b in zip(shape, room, strict=True)):
                return (
                    f"has {name} of {shape}, which does not fit into the {room} of {self.largest}"
                )
            try:
                self.chosen(size, name, first_units)
            except ValueError as error:
                return f"cannot have {name} of {shape} in the {room} of {self.largest} ({error})"
        return None

    def chosen(self, size: str, name: str, pick: Pick) -> list[Tensor | None]:
        """Which entries of a global array a size has, along each dimension; None for all."""
        whole = self.wholes[self._key(size, name)]
        return selection(whole, self.shapes[size][name], self._axes(size, name), pick)
