"""FedDF: ensemble distillation at the server, across sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord, Message, MetricRecord
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from fedwsa.algorithms.sizes.exclusive import Exclusive
from fedwsa.algorithms.sizes.layout import Shapes
from fedwsa.algorithms.sizes.server import ForSizes
from fedwsa.algorithms.traits import Traits
from fedwsa.wire import messages


@dataclass(frozen=True)
class Distilling:
    """How to distil.

    Attributes
    ----------
    steps, batch_size : int
        Of Adam, in each round and for each size.
    lr : float
        Falls to zero as a cosine.
    temperature : float
        τ, by which the answers are softened.
    """

    steps: NonNegativeInt
    batch_size: PositiveInt
    lr: PositiveFloat
    temperature: PositiveFloat


Weights = Mapping[str, Tensor]
Distilled = Callable[
    [Mapping[str, Weights], Sequence[tuple[str, Weights]], int, Distilling],
    Mapping[str, Weights],
]
"""(students by size, teachers, round, how) → the students, trained."""


class FedDF(Exclusive):
    """Average each size over its clients, then distil all clients' mean answer into each.

    So sizes learn from each other without sharing weights, by examples of the server without
    labels. With ``steps=0`` each size learns alone.

    Source: FedDF, arXiv 2006.07242, algorithm 3: heterogeneous model fusion, with the averages of
    the clients' logits.

    Parameters
    ----------
    distilled
        Trains students on the public examples; None: there are none.
    steps, batch_size, lr, temperature
        See :class:`Distilling`.
    shapes, others
        As for :class:`fedwsa.algorithms.sizes.exclusive.Exclusive`.

    Raises
    ------
    ValueError
        If the server has no public examples.
    """

    # All replies are looked at, one by one.
    traits: ClassVar[Traits] = replace(
        Exclusive.traits,
        averages_by=None,
        wants=(*Exclusive.traits.wants, "distilled"),
    )

    def __init__(
        self,
        shapes: Shapes,
        *,
        distilled: Distilled | None,
        steps: NonNegativeInt = 100,
        batch_size: PositiveInt = 128,
        lr: PositiveFloat = 1e-3,
        temperature: PositiveFloat = 1.0,
        **others: Unpack[ForSizes],
    ) -> None:
        super().__init__(shapes, **others)
        if distilled is None:
            raise ValueError(
                "FedDF distils on examples that the server has; give it a share, as init.public=0.1"
            )
        self._distilled = distilled
        self.how = Distilling(steps, batch_size, lr, temperature)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average within sizes, and distil."""
        given = [reply for reply in replies if reply.has_content()]
        averaged, metrics = super().aggregate_train(server_round, given)
        if averaged is None or not self.how.steps:
            return averaged, metrics
        teachers: list[tuple[str, Weights]] = []
        for reply in sorted(given, key=lambda reply: reply.metadata.src_node_id):
            arrays = messages.model_arrays(reply.content)
            if arrays is not None and (size := self._checked(reply)):
                teachers.append((size, messages.to_tensors(arrays)))
        students = {
            size: messages.to_tensors(self.plain(averaged, size, server_round))
            for size in self.shapes
        }
        made = self._distilled(students, teachers, server_round, self.how)
        return self.join(made), metrics
