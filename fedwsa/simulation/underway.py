"""What a pool knows of the messages that are on the way."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from flwr.app import Message
from ray import ObjectRef

from fedwsa.simulation.contexts import Kept
from fedwsa.simulation.orders import Job, Order
from fedwsa.simulation.transport import PackedContent

Number = tuple[int, int, int]
"""The exchange that a job belongs to, and where it stands in the order of sums: its own number,
and which part of it, if it was cut."""


@dataclass
class Finished:
    """What became of a message.

    Attributes
    ----------
    order : Order
        The message.
    reply : Message or None
        Without content; None: there is none.
    content : dict or None
        Packed.
    kept : ObjectRef or None
        What the client keeps from now on, if that changed.
    reason : str
        Why there is no reply; empty: its time was over.
    """

    order: Order
    reply: Message | None
    content: PackedContent | None = None
    kept: ObjectRef[Kept] | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A job in the queue."""

    job: Job
    number: Number
    again: bool = False  # a second try, after the death of a worker


@dataclass
class Running:
    """A job that a worker answers."""

    job: Job
    worker: int
    number: Number
    again: bool
    left: dict[str, Order]  # whose answers have not come
    held: list[Finished] = field(default_factory=list)  # until the job's average is there
    keeping: deque[Finished] = field(default_factory=deque)  # what they keep comes next
    over: bool = False  # all has come but the end of the stream
