"""HeteroFL: smaller clients train the first units of every layer."""

from __future__ import annotations

from typing import ClassVar

from fedwsa.algorithms.sizes.server import SizedFedAvg
from fedwsa.algorithms.traits import Traits


class HeteroFL(SizedFedAvg):
    """Each size has the first units of every layer; entries are averaged over who has them.

    The paper counts each client once (``weighted="clients"``), leaves the classes that a client
    has no sample of out of its loss (``local.mask_absent=true``), normalises statically
    (``model.norm=static``) and has a scaler (``scaler=True``). All of these are options here; by
    default clients count by their examples, so that with one size this is FedAvg.

    Source: HeteroFL, arXiv 2010.01264.

    Parameters
    ----------
    shapes, axes, size_of, own, weighted, scaler, class_rows, classifier
        See :class:`fedwsa.algorithms.sizes.server.SizedFedAvg`, as for the other parameters.
    """

    traits: ClassVar[Traits] = SizedFedAvg.traits  # again: it only averages
