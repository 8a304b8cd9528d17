"""FedRolex: smaller clients train a window of units that rolls on each round."""

from __future__ import annotations

from typing import ClassVar

from fedwsa.algorithms.sizes.server import SizedFedAvg
from fedwsa.algorithms.traits import Traits
from fedwsa.models.architecture import Pick, rolled_by


class FedRolex(SizedFedAvg):
    """As HeteroFL, with a window that begins one unit further in each round and wraps around.

    So all entries of the largest model are trained even if no client has its size. The window is
    the same in all layers: what a unit puts out is what the next layer's unit reads.

    Source: FedRolex, arXiv 2212.01548.

    Parameters
    ----------
    shapes, axes, size_of, own, weighted, scaler, class_rows, classifier
        See :class:`fedwsa.algorithms.sizes.server.SizedFedAvg`, as for the other parameters.
    """

    traits: ClassVar[Traits] = SizedFedAvg.traits  # again: it only averages

    def pick(self, server_round: int) -> Pick:
        """Round 1 begins at unit 0."""
        return rolled_by(server_round - 1)
