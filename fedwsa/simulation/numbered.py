"""The nodes of a simulation, which are numbered: no object for each, however many there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_FIRST = 2  # 1 is the server's


class NumberedNodes(Mapping[int, int]):
    """Node 2, 3, … → partition 0, 1, …, in that order.

    Parameters
    ----------
    count
        How many there are.

    Attributes
    ----------
    nodes : range
        Their ids, in the order of their partitions.
    """

    def __init__(self, count: int) -> None:
        self.nodes = range(_FIRST, _FIRST + count)

    def __getitem__(self, node: int) -> int:
        if node not in self.nodes:
            raise KeyError(node)
        return node - _FIRST

    def __iter__(self) -> Iterator[int]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)
