"""Each size learns alone."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Unpack

from fedwsa.algorithms.sizes.layout import Shapes
from fedwsa.algorithms.sizes.server import ForSizes, SizedFedAvg
from fedwsa.algorithms.traits import Traits


class Exclusive(SizedFedAvg):
    """FedAvg among the clients of each size, who learn nothing from the others.

    What a federation of sizes has to be better than. Its largest size is what those clients alone
    bring that can train it.

    Parameters
    ----------
    shapes, size_of, weighted, scaler, class_rows, classifier, sampling
        See :class:`fedwsa.algorithms.sizes.server.SizedFedAvg`.
    """

    traits: ClassVar[Traits] = replace(SizedFedAvg.traits, wants=("shapes", "classifier"))

    def __init__(self, shapes: Shapes, **others: Unpack[ForSizes]) -> None:
        super().__init__(shapes, own="", **others)
