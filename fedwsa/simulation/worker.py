"""What runs in a Ray actor: the app, answering the messages of one client after the other."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import (
    ArrayRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from ray import ObjectRef

from fedwsa.config.blame import told
from fedwsa.simulation.cohort import CohortApp, CohortReply
from fedwsa.simulation.contexts import Kept, OwnContext
from fedwsa.simulation.deadline import Late, limit
from fedwsa.simulation.orders import Answers, Job, Order, Told
from fedwsa.simulation.reduce import Accumulator
from fedwsa.simulation.transport import (
    Packed,
    PackedContent,
    PackedRecord,
    own_copy,
    pack,
    shell,
    unpack,
)
from fedwsa.wire.names import UNUSABLE_REPLY

CLIENT_APP_RAISED = 2
"""Error code of Flower's runtimes for a ClientApp that raised."""

_FLUSH_SECONDS, _FLUSH_BYTES = 0.05, 1 << 20


_Answer = tuple[Message | Told, Kept | None]
"""A reply, or what is left of it, and what its sender keeps from now on, if that changed."""


@dataclass(frozen=True)
class _Trained:
    """The answers of clients that were trained at once.

    Attributes
    ----------
    answers : list of Message, or of dict
        Whole; of a stack that is to be averaged the metrics, packed.
    stack : CohortReply or None
    kept : list of Kept or None
        What each keeps, if that changed.
    """

    answers: list[Message] | list[PackedContent]
    stack: CohortReply | None
    kept: list[Kept | None]


class _Full(Exception):
    """Clients take more memory than there is."""


class Worker:
    """Answers jobs; one lives in each Ray actor."""

    def begin(
        self,
        app: list[ObjectRef[ClientApp]],
        run_id: int,
        partitions: int,
        run_config: UserConfig,
    ) -> None:
        """As :meth:`serve`, with an app that is loaded here: its module may only now be found."""
        try:
            self.serve(ray.get(app[0]), run_id, partitions, run_config)
        except Exception as error:
            self._missing = f"the ClientApp cannot be loaded at the workers: {told(error)}"

    def serve(self, app: ClientApp, run_id: int, partitions: int, run_config: UserConfig) -> None:
        """Serve a run; what the process has loaded and cached for another one stays.

        Parameters
        ----------
        app
            The ClientApp.
        run_id
            Of the run.
        partitions
            How many there are.
        run_config
            What every client's context has.
        """
        # Flower asks who is speaking, and has no public way to say it.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, 1
        self._app, self._missing = app, ""
        self._run_id, self._partitions, self._run_config = run_id, partitions, run_config
        self._warnings: list[str] = []
        self._fits: int | None = None  # clients at once, if it was found out
        if not gc.get_freeze_count():
            # What is imported stays: looking through it again and again for garbage takes a fifth
            # of the time of small clients.
            gc.freeze()

    def run(self, job: Job) -> Iterator[Answers | Kept]:
        """Answer a job bit by bit; see :class:`Answers`."""
        if self._missing:
            raise RuntimeError(self._missing)
        start = flushed = time.monotonic()
        contents = _fetch(job.contents)
        average = job.reduction.begin() if job.reduction else None
        part, kept, size = Answers(), [], 0
        for group in self._groups(job, contents):
            ends = [start + order.seconds for order in group]
            received = [contents[order.content] for order in group]
            answers = self._answer(group, received, ends, average)
            for order, answer in zip(group, answers, strict=True):
                if answer is None:
                    part.late.append(order.key)
                    continue
                reply, changed = answer
                if isinstance(reply, Told):
                    part.told.append(reply)
                else:
                    if average is not None and reply.has_content():
                        reply = _add(average, reply, order, contents[order.content])
                    packed = pack(reply.content) if reply.has_content() else None
                    part.rows.append((shell(reply), packed))
                    size += _bytes(packed) if packed else 0
                if changed is not None:
                    part.keeping.append(order.key)
                    kept.append(changed)
            if size > _FLUSH_BYTES or time.monotonic() - flushed > _FLUSH_SECONDS:
                yield part
                for state in kept:  # Ray sends into the generator: no "yield from"
                    yield state
                part, kept, size, flushed = Answers(), [], 0, time.monotonic()
        if kept:  # what follows the last part could be lost with the worker
            yield part
            for state in kept:
                yield state
            part = Answers()
        total = average.content() if average is not None else None
        part.average = pack(total) if total is not None else None
        part.warnings, self._warnings = self._warnings, []
        part.last = True
        yield part

    def _groups(self, job: Job, contents: Sequence[RecordDict]) -> Iterator[list[Order]]:
        """Clients to answer together: one, or as many as may be trained at once."""
        together = isinstance(self._app, CohortApp) and self._app.train_cohort is not None
        asked = job.cohort if together else 1
        kinds = [_kind(content) for content in contents] if asked > 1 else []
        group: list[Order] = []
        for order in job.orders:
            trains = order.message.metadata.message_type == MessageType.TRAIN
            most = asked if self._fits is None else min(asked, self._fits)
            if group and not (
                trains and len(group) < most and kinds[group[0].content] == kinds[order.content]
            ):
                yield group
                group = []
            group.append(order)
            if not trains:
                yield group
                group = []
        if group:
            yield group

    def _answer(
        self,
        group: Sequence[Order],
        contents: Sequence[RecordDict],
        ends: Sequence[float],
        average: Accumulator | None,
    ) -> list[_Answer | None]:
        """The answers of a group; None for those whose time is over."""
        if len(group) > 1:
            whole = average is None or len({order.content for order in group}) > 1
            trained, full = None, False
            try:
                trained = self._train_together(group, contents, min(ends), whole)
            except Late:  # some may have longer
                pass
            except _Full:
                full = True
            if full:  # not in the handler: what was raised holds the tensors that filled it
                half = (len(group) + 1) // 2
                self._make_do_with(half, len(group))
                halves = (slice(None, half), slice(half, None))
                parts = [self._answer(group[h], contents[h], ends[h], average) for h in halves]
                return [answer for part in parts for answer in part]
            if trained is not None:
                return _answers(trained, group, contents[0], average)
        triples = zip(group, contents, ends, strict=True)
        return [self._answer_one(*triple) for triple in triples]

    def _make_do_with(self, count: int, tried: int) -> None:
        """Train no more clients at once from now on than about half of those that did not fit."""
        self._fits = count
        at_once = "one by one" if count == 1 else f"{count} at once"
        self._warnings.append(
            f"{tried} clients at once do not fit in the memory of a worker, which trains them "
            f"{at_once} from now on"
        )

    def _train_together(
        self, group: Sequence[Order], contents: Sequence[RecordDict], end: float, whole: bool
    ) -> _Trained | None:
        """What clients answer that are trained at once; None: they could not be.

        Parameters
        ----------
        whole
            Whether every answer is wanted; else a stack stays one, to be averaged.

        Raises
        ------
        _Full
            If that takes more memory than there is.
        Late
            If the time of one is over.
        """
        assert isinstance(self._app, CohortApp)
        assert self._app.train_cohort is not None
        try:
            own = [self._context(order) for order in group]
            pairs = zip(group, contents, strict=True)
            received = [_message(order, own_copy(content)) for order, content in pairs]
            with limit(end):
                replies = self._app.train_cohort(received, [o.context for o in own])
            if isinstance(replies, str):
                self._warnings.append(f"clients are trained one by one, since {replies}")
                return None
            _require_answers(replies, len(group))
            kept = [each.changed() for each in own]
            if not isinstance(replies, CohortReply):
                answers = [_checked(r, o) for r, o in zip(replies, group, strict=True)]
                return _Trained(answers, None, kept)
            if whole:
                return _Trained(_cut(replies, group), None, kept)
            return _Trained([pack(replies.said(k)) for k in range(len(group))], replies, kept)
        except Late:
            raise
        except BaseException as error:  # one by one will tell whose fault it is
            if _is_full(error):
                raise _Full from None
            line = "clients could not be trained at once, and are trained one by one"
            self._warnings.append(f"{line}: {told(error)}")
            return None

    def _answer_one(self, order: Order, content: RecordDict, end: float) -> _Answer | None:
        stage = order.message.metadata.message_type
        try:
            own = self._context(order)
            with limit(end):
                reply = self._app(_message(order, own_copy(content)), own.context)
            return _checked(reply, order), own.changed()
        except Late:
            return None
        except BaseException as error:  # sys.exit() too: one client's, not the worker's
            reason = f"{told(error)}\nin {stage} of client {order.partition}"
            reason = f"{reason}\n{traceback.format_exc()}"
            return Message(Error(CLIENT_APP_RAISED, reason), reply_to=order.message), None

    def _context(self, order: Order) -> OwnContext:
        kept = None if order.kept is None else ray.get(order.kept)
        node: UserConfig = {"partition-id": order.partition, "num-partitions": self._partitions}
        return OwnContext(self._run_id, order.node, node, self._run_config, kept)


def _fetch(
    contents: Sequence[dict[str, PackedRecord | ObjectRef[PackedRecord]]],
) -> list[RecordDict]:
    """Contents with their arrays read from the object store, once each, and not copied."""
    read: dict[ObjectRef[PackedRecord], PackedRecord] = {}

    def fetched(record: PackedRecord | ObjectRef[PackedRecord]) -> PackedRecord:
        if not isinstance(record, ObjectRef):
            return record
        if record not in read:
            found = ray.get(record)
            read[record] = found.unpack() if isinstance(found, Packed) else found
        return read[record]

    return [unpack({name: fetched(record) for name, record in c.items()}) for c in contents]


def _kind(content: RecordDict) -> list[tuple[str, object]]:
    """What clients have in common who may train together: names of records, and the arrays."""
    return [
        (name, id(record) if isinstance(record, ArrayRecord) else type(record))
        for name, record in content.items()
    ]


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


def _add(average: Accumulator, reply: Message, order: Order, content: RecordDict) -> Message:
    """Add a reply to the average; return what is left of it, or an error."""
    if problem := average.add(reply.content, content):
        return Message(Error(UNUSABLE_REPLY, problem), reply_to=order.message)
    bare = shell(reply)
    bare.content = RecordDict()
    for name, record in reply.content.items():
        if isinstance(record, MetricRecord):
            bare.content[name] = record
    return bare


def _require_answers(replies: object, count: int) -> None:
    """Refuse what is no answer of so many clients."""
    if not isinstance(replies, CohortReply | list):
        raise TypeError(
            "the cohort's function must return a CohortReply, a list of Messages, or a string that "
            f"says why the clients cannot be trained at once, not {type(replies).__name__}"
        )
    if len(replies) != count:
        raise ValueError(f"the cohort's function answers for {len(replies)} clients of {count}")


def _is_full(error: BaseException) -> bool:
    """Whether memory is what an error is about: of Python, of a GPU, of torch on a CPU."""
    torch = sys.modules.get("torch")  # imported by whoever has tensors
    of_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return isinstance(error, MemoryError) or of_gpu or "can't allocate memory" in str(error)


def _answers(
    trained: _Trained,
    group: Sequence[Order],
    sent: RecordDict,
    average: Accumulator | None,
) -> list[_Answer | None]:
    """What is sent: answers, or what is left of those that are added to the average here."""
    answers: Sequence[Any] = trained.answers
    if trained.stack is not None and average is not None:
        problems = average.add_stack(trained.stack, sent)
        rows = zip(group, answers, problems, strict=True)
        answers = [Told(order.key, said, problem) for order, said, problem in rows]
    return list(zip(answers, trained.kept, strict=True))


def _cut(replies: CohortReply, group: Sequence[Order]) -> list[Message]:
    """A message for each client of a stack."""
    return [Message(replies.content(k), reply_to=order.message) for k, order in enumerate(group)]


def _bytes(content: PackedContent) -> int:
    packed = (record for record in content.values() if isinstance(record, Packed))
    return sum(array.nbytes for record in packed for array in record.arrays.values())
