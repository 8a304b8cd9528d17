"""The fleet of a simulation as a ServerApp sees it: a Flower Grid over our pool of workers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ray
from flwr.app import ArrayRecord, Error, Message, Metadata, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedwsa import interruption
from fedwsa.simulation.contexts import Kept
from fedwsa.simulation.jobs import Parcels
from fedwsa.simulation.mailbox import Mailbox, seconds_left
from fedwsa.simulation.numbered import NumberedNodes
from fedwsa.simulation.pool import Pool
from fedwsa.simulation.reduce import Averaged, AveragedReplies, Reduction
from fedwsa.simulation.transport import pack, shell, unpack
from fedwsa.simulation.underway import Finished

logger = logging.getLogger("fedwsa")

WORKER_DIED = 8
"""Error code of Flower's runtimes for a ClientApp that crashed."""

_POLL = 0.5  # seconds between looks at the clock while waiting


class _Exchange:
    """Messages whose sender waits, and how many of them have been settled.

    Until ``soonest``, by ``time.time()``, the time to live of none is over.
    """

    def __init__(self, asked: Sequence[Metadata], lock: threading.RLock) -> None:
        self.left, self.done = {own.message_id for own in asked}, 0
        self.soonest = min((own.created_at + own.ttl for own in asked), default=0.0)
        self.news = threading.Condition(lock)


class RayGrid(Grid):
    """Nodes 2, 3, … of partitions 0, 1, …, played by the workers of a pool.

    Any number of threads may use it at once. What a client keeps in its ``Context`` lies in the
    object store and belongs to the pool: whichever worker plays the client next reads it from
    there, and a worker that dies takes none along. A client's messages are answered one after
    the other, each with what the one before has left.

    Parameters
    ----------
    pool
        The workers.
    run
        The run.
    partitions
        How many nodes there are.
    work
        What each partition has to do in a training, in any unit, or a function that says it; None:
        all the same.
    cohort
        How many clients a worker may train at once.
    """

    def __init__(
        self,
        pool: Pool,
        run: Run,
        partitions: int,
        work: Sequence[float] | Callable[[int], float] | None = None,
        cohort: int = 1,
    ) -> None:
        self._pool, self._run, self._cohort = pool, run, cohort
        self._work = _work_of(work)
        self.known_partitions = NumberedNodes(partitions)
        """The partition of each node."""
        self._on_progress: Callable[[int, int], None] = lambda done, total: None
        self._mail = Mailbox(run.run_id, self.known_partitions)
        self._waiting: dict[str, _Exchange] = {}
        pool.deliver, pool.broken = self._deliver, self._wake

    @property
    def run(self) -> Run:
        """The Flower run that messages belong to."""
        return Run(**vars(self._run))

    def set_run(self, run: Run) -> None:
        """Set the run, of which there is one."""
        if not isinstance(run, Run):
            raise TypeError(f"`run` must be an instance of Run, got {type(run).__name__}")
        if run.run_id != self._run.run_id:
            raise RuntimeError(f"Cannot find the run with ID: {run.run_id}")
        self._run = run

    def report_progress(self, on_progress: Callable[[int, int], None]) -> None:
        """Call this with the number of answers so far, and of messages, while they come."""
        self._on_progress = on_progress

    def client_states(self) -> dict[int, RecordDict]:
        """What the clients keep, by partition; those who keep nothing are not in it."""
        with self._pool.lock:
            references = dict(self._pool.kept)
        kept: dict[int, Kept] = {node: ray.get(r) for node, r in references.items()}
        if others := sorted({name for k in kept.values() for name in {**k.others, **k.beside}}):
            logger.warning(
                "clients keep %s on their context beside records: no checkpoint holds that",
                ", ".join(others),
            )
        return {self.known_partitions[node]: unpack(k.state) for node, k in kept.items()}

    def restore(self, states: Mapping[int, RecordDict]) -> None:
        """Let the clients keep this, by partition; the others keep nothing."""
        nodes = self.known_partitions.nodes
        kept = {nodes[p]: ray.put(Kept(pack(content))) for p, content in states.items()}
        with self._pool.lock:
            self._pool.kept = kept

    def get_node_ids(self) -> Iterable[int]:
        """Node ids: a set, as in Flower."""
        return set(self.known_partitions)

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

        Returns
        -------
        iterable of str
            Ids of the messages that were sent; one to a node that does not exist, or whose time
            to live is over, is not, which is logged.

        Raises
        ------
        ValueError
            If a message has been sent before, or stands there twice.
        """
        keys, _ = self._send(list(messages), None, None, wait=False)
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch the replies that are there.

        An id that was fetched before, is unknown, or whose message has outlived its time gives an
        error reply.
        """
        with self._pool.lock:
            self._check()
            return self._mail.fetch(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, wait, and return the replies.

        Those that are not there after ``timeout`` seconds are missing: a client whose time is
        over is interrupted, and what it did has no effect. Where the message's own time to live
        was over first, there is an error reply.

        Returns
        -------
        iterable of Message
            In the order of the messages; to :class:`Averaged` messages of one model each,
            :class:`AveragedReplies`, whose partial averages are of replies to the same arrays and
            come from a node that got them.
        """
        if timeout is not None:
            self._pool.await_ready()
        end = None if timeout is None else time.monotonic() + timeout
        reduction = _reduction(messages)
        instructions = list(messages)
        keys, number = self._send(instructions, reduction, end, wait=True)
        exchange = self._waiting[keys[0]] if keys else None
        try:
            if exchange is not None:
                self._wait(exchange, number, averaged=reduction is not None)
            with self._pool.lock:
                rows = self._mail.fetch(keys)
                averages = self._averages(number)
        finally:
            with self._pool.lock:
                self._mail.forget(keys)
                for key in keys:
                    self._waiting.pop(key, None)
        if reduction is None:
            return rows
        return AveragedReplies(averages + [row for row in rows if row.has_error()], rows)

    def _send(
        self,
        instructions: Sequence[Message],
        reduction: Reduction | None,
        end: float | None,
        *,
        wait: bool,
    ) -> tuple[list[str], int]:
        """Ids of what could be sent, and the number of the exchange."""
        if len({id(message) for message in instructions}) < len(instructions):
            raise ValueError("the same Message stands twice in one call; make one for each answer")
        sent = [message for message in instructions if self._mail.send(message)]
        parcels = Parcels(sent, reduction, self._cohort)  # stores arrays: without the lock
        now = time.monotonic()
        ends = [now + seconds_left(m) for m in sent]
        ends = ends if end is None else [min(e, end) for e in ends]
        keys = [message.metadata.message_id for message in sent]
        shells = [shell(message) for message in sent]
        with self._pool.lock:
            self._check()
            self._mail.register(shells)
            if wait:
                asked = [
                    m.metadata for m in sent if m.metadata.dst_node_id in self.known_partitions
                ]
                exchange = _Exchange(asked, self._pool.lock)
                self._waiting.update(dict.fromkeys(keys, exchange))
            jobs = parcels.jobs(shells, self.known_partitions, self._work, ends, self._pool)
            return keys, self._pool.submit(jobs)

    def _check(self) -> None:
        if self._pool.closed:
            raise RuntimeError("the simulation is over") from self._pool.error

    def _wait(self, exchange: _Exchange, number: int, *, averaged: bool) -> None:
        """Return when all messages of an exchange are settled."""
        total, told = len(exchange.left), -1
        while True:
            interruption.check()
            with self._pool.lock:
                self._check()
                # A time to live that is over ends the waiting, as in Flower; an average waits
                # for those who have longer.
                soon = exchange.soonest - time.time()
                over = [k for k in exchange.left if self._mail.is_over(k)] if soon <= 0 else []
                if len(exchange.left) == (0 if averaged else len(over)):
                    break
                done = exchange.done + self._pool.held(number)
                if done == told:
                    if soon <= 0:
                        rest = exchange.left - set(over)
                        soon = min(map(self._mail.seconds_left, rest), default=1.0)
                    exchange.news.wait(min(_POLL, max(soon, 0.01)))
                    continue
            told = done
            self._on_progress(done, total)
        self._on_progress(total, total)

    def _deliver(self, finished: Finished) -> None:
        """Keep what has come, in the pool's thread."""
        key, order = finished.order.key, finished.order
        if self._mail.awaits(key):
            reply = finished.reply
            if reply is not None and finished.content is not None:
                reply.content = unpack(finished.content)
            elif reply is None and finished.reason:
                where = f"{order.message.metadata.message_type} of client {order.partition}"
                error = Error(WORKER_DIED, f"{finished.reason}, twice\nin {where}")
                reply = Message(error, reply_to=order.message)
            if reply is not None:
                self._mail.put(key, reply)
            if finished.kept is not None:
                self._pool.kept[order.node] = finished.kept
        exchange = self._waiting.get(key)
        if exchange is not None:
            exchange.left.discard(key)
            exchange.done += finished.reply is not None or bool(finished.reason)
            exchange.news.notify_all()

    def _wake(self) -> None:
        for exchange in set(self._waiting.values()):
            exchange.news.notify_all()

    def _averages(self, exchange: int) -> list[Message]:
        """The partial averages in the order of their jobs, as replies to a message in them."""
        found = self._pool.take_averages(exchange)
        return [Message(unpack(content), reply_to=message) for message, content in found]


def _work_of(work: Sequence[float] | Callable[[int], float] | None) -> Callable[[int], float]:
    if work is None:
        return lambda partition: 1.0
    return work if callable(work) else work.__getitem__


def _reduction(messages: Iterable[Message]) -> Reduction | None:
    """How to average; None if it was not asked for, or the messages do not send one model each."""
    if not isinstance(messages, Averaged) or not messages:
        return None
    for message in messages:
        if sum(isinstance(record, ArrayRecord) for record in message.content.values()) != 1:
            return None
    return messages.reduction
