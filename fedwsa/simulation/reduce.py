"""Replies put together where they arise: a worker sends one for all of its clients.

The engine does not know how: a reduction comes with the messages, and judges what may take part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from flwr.app import Message, RecordDict

from fedwsa.simulation.cohort import CohortReply


class Accumulator(Protocol):
    """The replies of one worker, put together one after the other."""

    def add(self, content: RecordDict, sent: RecordDict) -> str | None:
        """Take a reply's content to what was sent; or say why it cannot be, and leave it out."""

    def add_stack(self, stack: CohortReply, sent: RecordDict) -> list[str | None]:
        """Take the replies of several clients to one content; of each, what :meth:`add` says."""

    def content(self) -> RecordDict | None:
        """The content of a reply that stands for all that were added; None if none was."""


class Reduction(Protocol):
    """How replies are put together; it is sent to the workers with the messages."""

    def begin(self) -> Accumulator:
        """One to which nothing was added yet."""


class Averaged(list[Message]):
    """Train messages to whose replies the sender does nothing but average them.

    A grid that can average at the workers answers these with :class:`AveragedReplies`; to every
    other grid they are a list of messages.

    Parameters
    ----------
    instructions
        The messages.
    reduction
        How they are averaged.
    """

    def __init__(self, instructions: Iterable[Message], reduction: Reduction) -> None:
        super().__init__(instructions)
        self.reduction = reduction


class AveragedReplies(list[Message]):
    """Partial averages, which together give the average of all replies, and error replies.

    Attributes
    ----------
    rows : list of Message
        For each client that answered, what it answered without its arrays, or its error.
    """

    def __init__(self, replies: Iterable[Message], rows: Iterable[Message]) -> None:
        super().__init__(replies)
        self.rows = list(rows)
