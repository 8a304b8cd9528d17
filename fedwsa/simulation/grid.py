"""The fleet of a simulation as a ServerApp sees it: a Flower Grid over our pool of workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from uuid import uuid4

import ray
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from ray import ObjectRef

from fedwsa.simulation.pool import Finished, Pool
from fedwsa.simulation.schedule import plan
from fedwsa.simulation.transport import (
    PackedContent,
    PackedRecord,
    Record,
    pack,
    pack_record,
    shell,
    unpack,
)
from fedwsa.simulation.worker import Job, Order
from fedwsa.strategies.averaging import Averaged, AveragedReplies
from fedwsa.strategies.replies import Rules

WORKER_DIED = 8
"""Error code of Flower's runtimes for a ClientApp that crashed."""

_FIRST_NODE = 2  # 1 is the server's
_PATIENCE = 1.0  # seconds that a worker has, after its time is over, to end by itself
_POLL = 0.5  # seconds between looks at the clock while waiting


class RayGrid(Grid):
    """Nodes 2, 3, … of partitions 0, 1, …, played by the workers of a pool.

    A client's ``Context.state`` lies in the object store and belongs to the grid: whichever
    worker plays the client next reads it from there, and a worker that dies takes none along.

    Parameters
    ----------
    pool
        The workers.
    run
        The run.
    partitions
        How many nodes there are.
    work
        What each partition has to do in a training, in any unit; None: all the same.
    cohort
        How many clients a worker may train at once.
    """

    def __init__(
        self,
        pool: Pool,
        run: Run,
        partitions: int,
        work: Sequence[float] | None = None,
        cohort: int = 1,
    ) -> None:
        self._pool, self._run, self._cohort = pool, run, cohort
        self._work = [1.0] * partitions if work is None else list(work)
        self.known_partitions = {_FIRST_NODE + i: i for i in range(partitions)}
        """The partition of each node."""
        self.on_progress: Callable[[int, int], None] = lambda done, total: None
        """Called with the number of answers so far, and of messages, while they come."""
        self._states: dict[int, ObjectRef[PackedContent]] = {}
        self._sent: set[str] = set()
        self._replies: dict[str, Message] = {}

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def client_states(self) -> dict[int, RecordDict]:
        """What the clients keep, by partition; those who keep nothing are not in it."""
        kept: dict[int, PackedContent] = {n: ray.get(s) for n, s in self._states.items()}
        return {self.known_partitions[node]: unpack(content) for node, content in kept.items()}

    @client_states.setter
    def client_states(self, states: Mapping[int, RecordDict]) -> None:
        nodes = {partition: node for node, partition in self.known_partitions.items()}
        self._states = {nodes[p]: ray.put(pack(content)) for p, content in states.items()}

    def get_node_ids(self) -> Iterable[int]:
        """Node ids, in the order of their partitions."""
        return list(self.known_partitions)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Nodes, in the order of their partitions."""
        return [NodeInfo(node_id=node) for node in self.known_partitions]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send without waiting.

        Raises
        ------
        ValueError
            If a message goes to a node that does not exist, or stands there twice.
        """
        instructions = list(messages)
        ids = self._register(instructions)
        self._pool.submit(self._jobs(instructions, None))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch the replies that are there."""
        for finished in self._pool.collect(0.0):
            self._store(finished)
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, wait, and return the replies.

        Those that are not there after ``timeout`` seconds are missing: a client whose time is
        over is interrupted, and what it did has no effect.

        Returns
        -------
        iterable of Message
            In the order of the messages; to :class:`Averaged` messages of one model each,
            :class:`AveragedReplies`, whose partial averages are of one content each and come
            from a node that got it.
        """
        if timeout is not None:
            self._pool.await_ready()
        end = None if timeout is None else time.monotonic() + timeout
        rules = _rules(messages)
        instructions = list(messages)
        ids = self._register(instructions)
        exchange = self._pool.submit(self._jobs(instructions, rules), end)
        self._wait(exchange, set(ids), end)
        rows = [self._replies.pop(i) for i in ids if i in self._replies]
        self._sent.difference_update(ids)
        if rules is None:
            return rows
        failed = [row for row in rows if row.has_error()]
        return AveragedReplies(self._averages(exchange) + failed, rows)

    def _register(self, instructions: Sequence[Message]) -> list[str]:
        if len({id(message) for message in instructions}) < len(instructions):
            raise ValueError("the same Message stands twice in one call; make one for each answer")
        for message in instructions:
            if message.metadata.dst_node_id not in self.known_partitions:
                raise ValueError(f"there is no node {message.metadata.dst_node_id}")
            # The field has no public setter; Flower's grids write it in the same way.
            message.metadata.__dict__["_message_id"] = str(uuid4())
        ids = [message.metadata.message_id for message in instructions]
        self._sent.update(ids)
        return ids

    def _jobs(self, instructions: Sequence[Message], rules: Rules | None) -> list[Job]:
        """The messages as jobs; records that several of them share are stored once."""
        contents: dict[int, int] = {}
        packed: list[dict[str, PackedRecord | ObjectRef[PackedRecord]]] = []
        stored: dict[int, ObjectRef[PackedRecord]] = {}
        orders = []
        for message in instructions:
            content = message.content
            if id(content) not in contents:
                contents[id(content)] = len(packed)
                packed.append({k: _stored(record, stored) for k, record in content.items()})
            node = message.metadata.dst_node_id
            orders.append(
                Order(
                    shell(message),
                    self.known_partitions[node],
                    contents[id(content)],
                    self._states.get(node),
                )
            )
        work = [self._work[order.partition] for order in orders]
        # Models of different sizes have no average.
        apart = rules is not None and len(packed) > 1
        kinds = [order.content for order in orders] if apart else None
        return [
            _job([orders[i] for i in chosen], packed, rules, self._cohort)
            for chosen in plan(work, self._pool.size, kinds)
        ]

    def _wait(self, exchange: int, ids: set[str], end: float | None) -> None:
        """Return when all answers of an exchange are there, or its time is over."""
        total, done = len(ids), 0
        while done < total:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                self._pool.forget_waiting(exchange)
                if left < -_PATIENCE or not self._pool.busy(exchange):
                    self._pool.abandon(exchange)
                    return
            elif not self._pool.busy(exchange):
                return  # all that is still missing was late
            pause = _POLL if left is None else min(_POLL, max(left, 0.01))
            for finished in self._pool.collect(pause):
                self._store(finished)
                done += finished.message.metadata.message_id in ids
            self.on_progress(done + self._pool.held(exchange), total)

    def _store(self, finished: Finished) -> None:
        key = finished.message.metadata.message_id
        if key not in self._sent:
            return
        if finished.reply is None:
            partition = self.known_partitions[finished.message.metadata.dst_node_id]
            reason = (
                f"{finished.reason}, twice\nin {finished.message.metadata.message_type} "
                f"of client {partition}"
            )
            reply = Message(Error(WORKER_DIED, reason), reply_to=finished.message)
        else:
            reply = finished.reply
            if finished.content is not None:
                reply.content = unpack(finished.content)
        if finished.state is not None:
            self._states[finished.message.metadata.dst_node_id] = finished.state
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        self._replies[key] = reply

    def _averages(self, exchange: int) -> list[Message]:
        """The partial averages in the order of their jobs, as replies to a message in them."""
        found = self._pool.take_averages(exchange)
        return [Message(unpack(content), reply_to=message) for message, content in found]


def _rules(messages: Iterable[Message]) -> Rules | None:
    """How to average; None if it was not asked for, or the messages do not send one model each."""
    if not isinstance(messages, Averaged) or not messages:
        return None
    if any(len(message.content.array_records) != 1 for message in messages):
        return None
    return messages.rules


def _stored(
    record: Record, stored: dict[int, ObjectRef[PackedRecord]]
) -> PackedRecord | ObjectRef[PackedRecord]:
    if not isinstance(record, ArrayRecord):
        return record
    if id(record) not in stored:
        stored[id(record)] = ray.put(pack_record(record))
    return stored[id(record)]


def _job(
    orders: list[Order],
    contents: list[dict[str, PackedRecord | ObjectRef[PackedRecord]]],
    rules: Rules | None,
    cohort: int,
) -> Job:
    """A job with only the contents that its orders need."""
    needed = sorted({order.content for order in orders})
    place = {content: i for i, content in enumerate(needed)}
    moved = [Order(o.message, o.partition, place[o.content], o.state) for o in orders]
    return Job(moved, [contents[i] for i in needed], rules, None, cohort)
