"""Clients of different depths: the first blocks of a network, each depth with its classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Unpack

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.sizes.server import Shapes, SizedFedAvg, Weighted
from fedwsa.algorithms.traits import Traits
from fedwsa.models.architecture import Axes


class DepthFL(SizedFedAvg):
    """Sizes differ in depth alone: a client has the first blocks, and its depth's own classifier.

    As in DepthFL (ICLR 2023), blocks are averaged over the clients that reach them. Rows of a
    depth's classifier are averaged over its clients that have the class (ours, after HeteroFL). Its
    self-distillation among the classifiers on a client's way is not part of this: a client here
    has one classifier, at its end.

    Parameters
    ----------
    shapes, axes, size_of, weighted, class_rows, classifier
        See :class:`fedwsa.algorithms.sizes.server.SizedFedAvg`, as for the other parameters.
    head : str
        A regular expression over what stands behind the last block, matched at the beginning of
        names.

    Raises
    ------
    ValueError
        If an array has different shapes in two sizes.
    """

    traits: ClassVar[Traits] = replace(
        SizedFedAvg.traits, wants=("shapes", "axes", "head", "classifier")
    )
    most_alike = "sizes may differ in depth only"

    def __init__(
        self,
        shapes: Shapes,
        *,
        axes: Axes | None = None,
        size_of: Callable[[int], str] | None = None,
        head: str = r"head\.",
        weighted: Weighted = "examples",
        class_rows: bool = True,
        classifier: Sequence[str] = (),
        **sampling: Unpack[Sampling],
    ) -> None:
        super().__init__(
            shapes,
            axes=axes,
            size_of=size_of,
            own=head,
            weighted=weighted,
            class_rows=class_rows,
            classifier=classifier,
            **sampling,
        )

    def _misfit(self, size: str, largest: str) -> str | None:
        whole = self.shapes[largest]
        for name, shape in self.shapes[size].items():
            if not self.is_own(name) and whole.get(name, shape) != shape:
                return f"has {name} of {shape}, and {largest} of {whole[name]}: {self.most_alike}"
        return super()._misfit(size, largest)
