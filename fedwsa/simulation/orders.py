"""What goes to a worker, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr.app import Message
from ray import ObjectRef

from fedwsa.simulation.contexts import Kept
from fedwsa.simulation.reduce import Reduction
from fedwsa.simulation.transport import PackedContent, PackedRecord


@dataclass(frozen=True)
class Order:
    """A message for one client.

    Attributes
    ----------
    message : Message
        Without its content.
    partition : int
        Of the client.
    content : int
        Which of the job's contents.
    end : float
        When the time to answer is over, by ``time.monotonic()`` of the sender.
    seconds : float
        What is left of it when the job is sent.
    kept : ObjectRef or None
        What the client keeps, as it is when the job is sent; None: nothing.
    """

    message: Message
    partition: int
    content: int
    end: float
    seconds: float = 0.0
    kept: ObjectRef[Kept] | None = None

    @property
    def key(self) -> str:
        """Id of the message."""
        return self.message.metadata.message_id

    @property
    def node(self) -> int:
        """Node id of the client."""
        return self.message.metadata.dst_node_id


@dataclass(frozen=True)
class Job:
    """Clients for one worker.

    Attributes
    ----------
    orders : list of Order
        In the order in which they are answered; no client has two.
    contents : list of dict
        The distinct contents; arrays are references into the object store.
    reduction : Reduction or None
        Answer with one content for all replies that it takes.
    cohort : int
        How many clients may be trained at once.
    """

    orders: list[Order]
    contents: list[dict[str, PackedRecord | ObjectRef[PackedRecord]]]
    reduction: Reduction | None = None
    cohort: int = 1


@dataclass(frozen=True)
class Told:
    """What is left of an answer that went into an average.

    Attributes
    ----------
    key : str
        Id of the message that it answers.
    said : dict
        Its metrics, packed.
    problem : str or None
        Why it could not be averaged.
    """

    key: str
    said: PackedContent
    problem: str | None


@dataclass
class Answers:
    """A part of the answers to a job.

    Attributes
    ----------
    rows : list of (Message, dict or None)
        The replies without content, and their contents, packed; in a job that is averaged the
        contents have no arrays.
    told : list of Told
        Others, of clients whose replies were averaged in one piece.
    keeping : list of str
        Ids of the messages whose receivers keep something new: it follows, an object each.
    late : list of str
        Ids of the messages whose time was over.
    last : bool
        Nothing follows, and nobody was left out.
    average : dict or None
        The packed average, in the last part.
    warnings : list of str
        What a person should know.
    """

    rows: list[tuple[Message, PackedContent | None]] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    keeping: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    last: bool = False
    average: PackedContent | None = None
    warnings: list[str] = field(default_factory=list)
