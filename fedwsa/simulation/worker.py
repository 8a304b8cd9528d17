"""What runs in a Ray actor: the app, answering the messages of one client after the other."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import ray
from flwr.app import Context, Error, Message, MessageType, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from ray import ObjectRef

from fedwsa import messages
from fedwsa.blame import told
from fedwsa.simulation.averaging import PartialAverage
from fedwsa.simulation.cohort import CohortApp
from fedwsa.simulation.transport import (
    Packed,
    PackedContent,
    PackedRecord,
    Record,
    own_copy,
    pack,
    same,
    shell,
    unpack,
)
from fedwsa.strategies.replies import Rules

CLIENT_APP_RAISED = 2
"""Error code of Flower's runtimes for a ClientApp that raised."""

_FLUSH_SECONDS, _FLUSH_BYTES = 0.05, 1 << 20
_AGAIN = 0.05  # seconds until a client that was importing is interrupted again


class _Late(BaseException):
    """The time of a job is over; not an Exception, so that no app swallows it."""


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
    state : ObjectRef or None
        The client's packed state; None: it has none.
    """

    message: Message
    partition: int
    content: int
    state: ObjectRef[PackedContent] | None


@dataclass(frozen=True)
class Job:
    """Clients for one worker.

    Attributes
    ----------
    orders : list of Order
        In the order in which they are answered.
    contents : list of dict
        The distinct contents; arrays are references into the object store.
    rules : Rules or None
        Answer with one weighted average, of the replies that keep to them.
    seconds : float or None
        How long it may take.
    cohort : int
        How many clients may be trained at once.
    """

    orders: list[Order]
    contents: list[dict[str, PackedRecord | ObjectRef[PackedRecord]]]
    rules: Rules | None = None
    seconds: float | None = None
    cohort: int = 1


@dataclass
class Answers:
    """A part of the answers to a job.

    Attributes
    ----------
    rows : list of (Message, dict or None)
        The replies without content, and their contents, packed; in a job that is averaged the
        contents have no arrays.
    states : list of Message ids
        Clients whose new states follow in the stream, one object each.
    average : dict or None
        The packed average, in the last part.
    warnings : list of str
        What a person should know.
    """

    rows: list[tuple[Message, PackedContent | None]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    average: PackedContent | None = None
    warnings: list[str] = field(default_factory=list)


class Worker:
    """Answers jobs; one lives in each Ray actor.

    Parameters
    ----------
    app
        The ClientApp.
    run_id
        Of the run.
    partitions
        How many there are.
    """

    def __init__(self, app: ClientApp, run_id: int, partitions: int) -> None:
        self.begin(app, run_id, partitions)

    def begin(self, app: ClientApp, run_id: int, partitions: int) -> None:
        """Serve a run; what the process has loaded and cached for another one stays."""
        # Flower asks who is speaking, and has no public way to say it.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, 1
        self._app, self._run_id, self._partitions = app, run_id, partitions
        self._warnings: list[str] = []

    def ready(self) -> bool:
        """Return once the worker lives."""
        return True

    def warm(self) -> bool:
        """Import what torch does at its first training step, for seconds: no client's time."""
        import torch._dynamo  # noqa: F401

        return True

    def run(self, job: Job) -> Iterator[Answers | PackedContent]:
        """Answer a job bit by bit; see :class:`Answers`."""
        end = None if job.seconds is None else time.monotonic() + job.seconds
        contents = [_fetch(content) for content in job.contents]
        average = PartialAverage(job.rules) if job.rules else None
        part, states, size, flushed = Answers(), [], 0, time.monotonic()
        for group in self._groups(job):
            try:
                answered = self._answer(group, contents[group[0].content], end)
            except _Late:
                break  # this client and those after it are late
            for order, (reply, changed) in zip(group, answered, strict=True):
                if average is not None and reply.has_content():
                    reply = _add(average, reply, order, contents[order.content])
                packed = pack(reply.content) if reply.has_content() else None
                part.rows.append((shell(reply), packed))
                if changed is not None:
                    part.states.append(order.message.metadata.message_id)
                    states.append(changed)
                size += _bytes(packed) if packed else 0
            if size > _FLUSH_BYTES or time.monotonic() - flushed > _FLUSH_SECONDS:
                yield part
                for state in states:  # Ray sends into the generator: no "yield from"
                    yield state
                part, states, size, flushed = Answers(), [], 0, time.monotonic()
        total = average.content() if average is not None else None
        part.average = pack(total) if total is not None else None
        part.warnings, self._warnings = self._warnings, []
        yield part
        for state in states:
            yield state

    def _groups(self, job: Job) -> Iterator[list[Order]]:
        """Clients to answer together: one, or as many as may be trained at once."""
        together = isinstance(self._app, CohortApp) and self._app.train_cohort is not None
        most = job.cohort if together else 1
        group: list[Order] = []
        for order in job.orders:
            trains = order.message.metadata.message_type == MessageType.TRAIN
            if group and not (trains and len(group) < most and group[0].content == order.content):
                yield group
                group = []
            group.append(order)
            if not trains:
                yield group
                group = []
        if group:
            yield group

    def _answer(
        self, group: Sequence[Order], content: RecordDict, end: float | None
    ) -> list[tuple[Message, PackedContent | None]]:
        """Replies of a group, with the states that changed."""
        if len(group) > 1:
            assert isinstance(self._app, CohortApp)
            assert self._app.train_cohort is not None
            contexts = [self._context(order) for order in group]
            received = [_message(order, own_copy(content)) for order in group]
            before = [_snapshot(context) for context in contexts]
            try:
                with _limit(end):
                    replies = self._app.train_cohort(received, contexts)
                if replies is not None:
                    replies = [_checked(r, o) for r, o in zip(replies, group, strict=True)]
            except _Late:
                raise
            except BaseException as error:  # one by one will tell whose fault it is
                replies = None
                line = "clients could not be trained at once, and are trained one by one"
                self._warnings.append(f"{line}: {told(error)}")
            if replies is not None:
                triples = zip(replies, before, contexts, strict=True)
                return [(r, _changed(b, c)) for r, b, c in triples]
        return [self._answer_one(order, content, end) for order in group]

    def _answer_one(
        self, order: Order, content: RecordDict, end: float | None
    ) -> tuple[Message, PackedContent | None]:
        message, stage = order.message, order.message.metadata.message_type
        try:
            context = self._context(order)
            before = _snapshot(context)
            with _limit(end):
                reply = self._app(_message(order, own_copy(content)), context)
            return _checked(reply, order), _changed(before, context)
        except _Late:
            raise
        except BaseException as error:  # sys.exit() too: one client's, not the worker's
            reason = f"{told(error)}\nin {stage} of client {order.partition}"
            reason = f"{reason}\n{traceback.format_exc()}"
            return Message(Error(CLIENT_APP_RAISED, reason), reply_to=message), None

    def _context(self, order: Order) -> Context:
        kept: PackedContent = {} if order.state is None else ray.get(order.state)
        state = unpack(kept)
        node: UserConfig = {"partition-id": order.partition, "num-partitions": self._partitions}
        return Context(self._run_id, order.message.metadata.dst_node_id, node, state, {})


def _fetch(content: dict[str, PackedRecord | ObjectRef[PackedRecord]]) -> RecordDict:
    """A content with its arrays read, not copied, from the object store."""
    return unpack({k: ray.get(r) if isinstance(r, ObjectRef) else r for k, r in content.items()})


def _message(order: Order, content: RecordDict) -> Message:
    message = shell(order.message)
    message.content = content
    return message


def _checked(reply: object, order: Order) -> Message:
    """What the app returned, if it is an answer to the order."""
    if not isinstance(reply, Message):
        raise TypeError(f"the ClientApp returned a {type(reply).__name__}, not a Message")
    if reply.metadata.reply_to_message_id != order.message.metadata.message_id:
        raise ValueError("the ClientApp returned a Message that is no reply to the one it got")
    return reply


def _snapshot(context: Context) -> dict[str, Record]:
    return {name: record.copy() for name, record in context.state.items()}


def _changed(before: dict[str, Record], context: Context) -> PackedContent | None:
    return None if same(before, context.state) else pack(context.state)


def _add(average: PartialAverage, reply: Message, order: Order, content: RecordDict) -> Message:
    """Add a reply to the average; return what is left of it, or an error."""
    if problem := average.add(reply.content, content):
        return Message(Error(messages.UNUSABLE_REPLY, problem), reply_to=order.message)
    bare = shell(reply)
    bare.content = RecordDict(dict(reply.content.metric_records))
    return bare


def _bytes(content: PackedContent) -> int:
    packed = (record for record in content.values() if isinstance(record, Packed))
    return sum(array.nbytes for record in packed for array in record.arrays.values())


@contextmanager
def _limit(end: float | None) -> Iterator[None]:
    """Interrupt the code inside when the time is over.

    Python code is interrupted at once, a call into a library when it returns; one that never
    does is ended with its process. An import is let through: half of a package would stay behind,
    and break all clients that come later.
    """
    if end is None:
        yield
        return

    def over(_: int, frame: FrameType | None) -> None:
        if _importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            return
        raise _Late

    left = end - time.monotonic()
    if left <= 0:
        raise _Late
    previous = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
        if time.monotonic() > end:  # an import was let through, and the rest was short
            raise _Late
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported, further out."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
