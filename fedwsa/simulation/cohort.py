"""A ClientApp that can train many clients at once, and their answers in one piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedwsa.wire.names import ARRAYS, METRICS

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported by whoever has tensors.


@dataclass(frozen=True, eq=False)
class CohortReply:
    """The answers of K clients in one piece, as they were trained.

    Where a strategy only averages, the stack is summed up as it is, on its device, and no message
    is made for a client; else it is cut into replies.

    Attributes
    ----------
    arrays : mapping of str to Tensor
        Stacked, ``(K, …)``; they are not changed afterwards.
    metrics : sequence of mapping
        Of each client, in the order of the messages: numbers or lists of numbers, by name.
    rows : sequence of int or None
        Where each client stands in the arrays; None: in the order of the messages.
    arrays_name, metrics_name : str
        What the two records of a reply are called.
    """

    arrays: Mapping[str, Tensor]
    metrics: Sequence[Mapping[str, Any]]
    rows: Sequence[int] | None = None
    arrays_name: str = ARRAYS
    metrics_name: str = METRICS

    def __post_init__(self) -> None:
        import torch

        tensors = {name: torch.as_tensor(array) for name, array in self.arrays.items()}
        vars(self)["arrays"] = tensors
        count = len(self.metrics)
        places = range(count) if self.rows is None else self.rows
        if sorted(places) != list(range(count)):
            raise ValueError(
                f"CohortReply: rows must name each place of {count} clients once, 0 to {count - 1}"
            )
        for name, tensor in tensors.items():
            if tensor.dim() < 1 or len(tensor) != count:
                raise ValueError(
                    f"CohortReply: {name} has shape {tuple(tensor.shape)}; with metrics of {count} "
                    f"clients it must be ({count}, …)"
                )

    def __len__(self) -> int:
        return len(self.metrics)

    @classmethod
    def joined(cls, pieces: Sequence[CohortReply], clients: Sequence[int]) -> CohortReply:
        """Several in one, with records of one name.

        Parameters
        ----------
        clients
            Whose the answers are, piece by piece: each of 0 … K − 1 once.
        """
        import torch

        rows, said, before = list[int](), list[Mapping[str, Any]](), 0
        for piece in pieces:
            rows += [before + piece.row(k) for k in range(len(piece))]
            said += piece.metrics
            before += len(piece)
        order = sorted(range(before), key=lambda place: clients[place])
        first, *others = (piece.arrays for piece in pieces)
        arrays = {
            name: torch.cat([t, *(other[name] for other in others)]) if others else t
            for name, t in first.items()
        }
        names = pieces[0].arrays_name, pieces[0].metrics_name
        return cls(arrays, [said[i] for i in order], [rows[i] for i in order], *names)

    def row(self, k: int) -> int:
        """Where client k stands in the arrays."""
        return k if self.rows is None else self.rows[k]

    def said(self, k: int) -> RecordDict:
        """The metrics of client k, as a record."""
        return RecordDict({self.metrics_name: MetricRecord(dict(self.metrics[k]))})

    def content(self, k: int) -> RecordDict:
        """The reply of client k."""
        from fedwsa.wire import messages

        row = self.row(k)
        arrays = messages.to_arrays({name: t[row] for name, t in self.arrays.items()})
        return RecordDict({self.arrays_name: arrays, **self.said(k)})


CohortTraining = Callable[[Sequence[Message], Sequence[Context]], list[Message] | CohortReply | str]
"""Messages, and the contexts of their receivers → the replies, one by one or in one piece.

The messages have records of the same names and kinds, and the same arrays; what else they say
may differ. A string says why these cannot be trained together, as in "their models differ"; they
are then trained one by one.
"""


class CohortApp(ClientApp):
    """A Flower ClientApp with a second way to train: several clients in one call.

    On every runtime it is a ClientApp; our engine hands it up to ``cohort`` train messages at
    once where it is asked to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.train_cohort: CohortTraining | None = None

    def cohort(self, function: CohortTraining) -> CohortTraining:
        """Register the function that trains several clients (a decorator)."""
        self.train_cohort = function
        return function
