"""The Ray actors: jobs to those that are free, answers as they come, the dead replaced."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import ray
from flwr.app import Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from ray import ObjectRef
from ray.exceptions import RayActorError, RayError, RayTaskError

from fedwsa import interruption
from fedwsa.simulation import kept as kept_workers
from fedwsa.simulation.cluster import search_path
from fedwsa.simulation.contexts import Kept
from fedwsa.simulation.orders import Answers, Job, Order, Told
from fedwsa.simulation.transport import PackedContent
from fedwsa.simulation.underway import Finished, Number, Running, Waiting
from fedwsa.simulation.worker import Worker
from fedwsa.wire.names import UNUSABLE_REPLY

logger = logging.getLogger("fedwsa")

_PATIENCE = 1.0  # seconds that a worker has to end what it does, where its time is over
_LONG_PATIENCE = 10.0  # seconds for what takes none, unless the machine is very busy
_POLL = 0.05  # seconds until jobs that were sent meanwhile are listened to

_Thing = Answers | ObjectRef[Kept] | RayError | None
"""What comes in the stream of a job; None: its end."""


class Pool:
    """Workers in Ray actors, and the thread that sends them jobs and reads their answers.

    Parameters
    ----------
    app
        The ClientApp, the same for all.
    run_id, partitions
        See :class:`fedwsa.simulation.worker.Worker`.
    workers
        How many.
    gpus
        Share of a GPU that each has.
    keep
        Leave the workers for the next pool of this process that keeps them, and take those of the
        last: starting one takes seconds, most of them for imports.
    cpus
        CPUs of each; Ray gives it as many threads, at least one.
    run_config
        What the context of each client has.

    Attributes
    ----------
    lock : RLock
        Whoever calls :meth:`submit` or reads what ``deliver`` writes holds it.
    deliver : callable
        Called with what became of each message, in the pool's thread, under the lock.
    broken : callable
        Called under the lock when the thread has ended: nothing will come any more.
    kept : dict
        By node, what a client keeps. A message is sent with what the one before it left.
    error : BaseException or None
        What ended the thread.
    """

    def __init__(
        self,
        app: ClientApp,
        run_id: int,
        partitions: int,
        workers: int,
        gpus: float = 0.0,
        keep: bool = False,
        cpus: float = 1.0,
        run_config: UserConfig | None = None,
    ) -> None:
        app_ref, paths, node = ray.put(app), search_path(), kept_workers.session()
        self._make: Callable[[], Any] = lambda: kept_workers.start(gpus, cpus)
        self._begin: Callable[[Any], Any] = lambda actor: actor.begin.remote(
            Worker, paths, node, [app_ref], run_id, partitions, run_config or {}
        )
        self._kind = kept_workers.kind_of(gpus, cpus) if keep else None
        taken = kept_workers.take(self._kind, workers)
        self._actors: list[Any] = taken + [self._make() for _ in range(workers - len(taken))]
        self._starting = [self._begin(worker) for worker in self._actors]
        self._warm: set[int] = set()
        self._free = deque(range(workers))
        self._queue: deque[Waiting] = deque()
        self._running: dict[Any, Running] = {}
        self._warned: set[str] = set()
        self._exchanges = count()
        self._averages: dict[Number, tuple[Message, PackedContent]] = {}
        self._turns: dict[int, deque[str]] = {}  # of each node, its messages that are on the way
        # What a worker on another machine keeps would be lost with that machine.
        self._spread = sum(node["Alive"] for node in ray.nodes()) > 1  # type: ignore[no-untyped-call]
        self.kept: dict[int, ObjectRef[Kept]] = {}
        self.lock = threading.RLock()
        self.deliver: Callable[[Finished], None] = lambda finished: None
        self.broken: Callable[[], None] = lambda: None
        self.error: BaseException | None = None
        self._news = threading.Condition(self.lock)
        self._looked = 0.0  # when it was last asked whose time is over
        self._end: float | None = None  # when a pool that closes waits no longer
        self._thread = threading.Thread(target=self._pump, name="fedwsa-pool", daemon=True)
        self._thread.start()

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self._actors)

    @property
    def closed(self) -> bool:
        """Whether nothing will come any more."""
        return self._end is not None or self.error is not None

    def outstanding(self, node: int) -> int:
        """How many messages to a node are on the way."""
        return len(self._turns.get(node, ()))

    def held(self, exchange: int) -> int:
        """How many answers have come that wait for the average of their job."""
        return sum(len(r.held) for r in self._running.values() if r.number[0] == exchange)

    def take_averages(self, exchange: int) -> list[tuple[Message, PackedContent]]:
        """The averages of an exchange in the order of their jobs, each with a message in it."""
        numbers = sorted(number for number in self._averages if number[0] == exchange)
        return [self._averages.pop(number) for number in numbers]

    def await_ready(self, patience: float = 60.0) -> None:
        """Return when all workers live and have imported torch: that is no client's time."""
        with self.lock:
            for i, actor in enumerate(self._actors):
                if i not in self._warm:
                    self._starting[i] = actor.warm.remote()
                    self._warm.add(i)
            starting = list(self._starting)
        end = time.monotonic() + patience
        while (left := end - time.monotonic()) > 0:
            interruption.check()
            _, away = ray.wait(starting, num_returns=len(starting), timeout=min(left, _POLL))
            if not away:
                return

    def submit(self, jobs: Sequence[Job]) -> int:
        """Put the jobs of an exchange in the queue; returns its number.

        A client's messages are answered one after the other, in the order of their jobs.
        """
        exchange = next(self._exchanges)
        for i, job in enumerate(jobs):
            for order in job.orders:
                self._turns.setdefault(order.node, deque()).append(order.key)
            self._queue.append(Waiting(job, (exchange, i, 0)))
        self._dispatch()
        self._news.notify()
        return exchange

    def close(self) -> None:
        """End the actors, or leave those that have nothing to do for the next pool."""
        with self.lock:
            self._queue.clear()
            # Where all has come, the ends of the streams are as good as here.
            done = all(running.over for running in self._running.values())
            patience = 0.0 if self._kind is None else _LONG_PATIENCE if done else _PATIENCE
            self._end = time.monotonic() + patience
            self._news.notify()
            self.broken()
        self._thread.join(2 * _LONG_PATIENCE)
        if self._thread.is_alive():  # it waits for a worker, and ends with it
            self._kind = None
            for actor in list(self._actors):
                ray.kill(actor)
            self._thread.join(_LONG_PATIENCE)
        working = {running.worker for running in self._running.values()}
        for i, actor in enumerate(self._actors):
            if self._kind is None or i in working or self.error is not None:
                ray.kill(actor)
            else:
                kept_workers.leave(self._kind, actor)

    # --- the pool's thread -----------------------------------------------------------------------

    def _pump(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # whoever waits learns of it, and nobody waits for ever
            with self.lock:
                self.error = error
                self.broken()

    def _step(self) -> bool:
        """Wait for something to come, and read it; False: the pool is closed."""
        with self.lock:
            while not self._running and not self._queue and self._end is None:
                self._news.wait()
            if self._end is not None and (not self._running or time.monotonic() >= self._end):
                return False
            self._give_up_late()
            self._dispatch()
            streams = list(self._running)
        if not streams:
            return True
        # Without the lock: others go on sending.
        ready, _ = ray.wait(streams, timeout=_POLL, num_returns=1)
        if ready and len(streams) > 1:
            ready, _ = ray.wait(streams, timeout=0, num_returns=len(streams))
        for stream in ready:
            thing = self._next(stream)
            with self.lock:
                for finished in self._read(stream, thing):
                    self._settle(finished)
                self._dispatch()
        return True

    def _dispatch(self) -> None:
        """Send jobs whose clients have nothing else to answer first."""
        while self._free and (next_ := next(filter(self._is_next, self._queue), None)):
            self._queue.remove(next_)
            worker, now = self._free.popleft(), time.monotonic()
            orders = [
                Order(o.message, o.partition, o.content, o.end, o.end - now, self.kept.get(o.node))
                for o in next_.job.orders
            ]
            job = replace(next_.job, orders=orders)
            stream = self._actors[worker].run.options(num_returns="streaming").remote(job)
            left = {order.key: order for order in orders}
            self._running[stream] = Running(job, worker, next_.number, next_.again, left)

    def _is_next(self, waiting: Waiting) -> bool:
        return all(self._turns[o.node][0] == o.key for o in waiting.job.orders)

    def _settle(self, finished: Finished) -> None:
        """Hand on what became of a message; the next one to its client may go."""
        order = finished.order
        turns = self._turns[order.node]
        turns.remove(order.key)
        if not turns:
            del self._turns[order.node]
        self.deliver(finished)

    def _give_up_late(self) -> None:
        """Start nothing whose time is over, and end workers that cannot be interrupted."""
        now = time.monotonic()
        if now < self._looked + _POLL:
            return
        self._looked = now
        for waiting in [w for w in self._queue if any(o.end <= now for o in w.job.orders)]:
            late = [order for order in waiting.job.orders if order.end <= now]
            rest = [order for order in waiting.job.orders if order.end > now]
            place = self._queue.index(waiting)
            del self._queue[place]
            if rest:
                self._queue.insert(place, replace(waiting, job=replace(waiting.job, orders=rest)))
            for order in late:
                self._settle(Finished(order, None))
        for stream, running in list(self._running.items()):
            overdue = [order.end + _PATIENCE <= now for order in running.left.values()]
            if overdue and all(overdue):
                del self._running[stream]
                self._replace(running.worker)
                self._free.append(running.worker)
                for order in running.left.values():
                    self._settle(Finished(order, None))

    def _next(self, stream: Any) -> _Thing:
        """The next object of a job's stream, once it is here; None: it has ended."""
        try:
            reference = next(stream)
            # One whose sender died while it sent can be had, too: as an error.
            thing: Answers | Kept = ray.get(reference)
        except StopIteration:
            return None
        except RayError as error:
            return error
        if isinstance(thing, Answers):
            return thing
        kept: ObjectRef[Kept] = ray.put(thing) if self._spread else reference
        return kept

    def _read(self, stream: Any, thing: _Thing) -> Iterator[Finished]:
        running = self._running[stream]
        if thing is None or isinstance(thing, RayError):
            yield from self._ended(stream, running, thing)
        elif isinstance(thing, Answers):
            yield from self._take(running, thing)
        else:
            finished = running.keeping.popleft()
            finished.kept = thing
            yield from self._finish(running, [finished])

    def _take(self, running: Running, part: Answers) -> Iterator[Finished]:
        found = [
            Finished(running.left[reply.metadata.reply_to_message_id], reply, content)
            for reply, content in part.rows
        ]
        found += [_finished(told, running.left[told.key]) for told in part.told]
        by_key = {finished.order.key: finished for finished in found}
        running.keeping.extend(by_key.pop(key) for key in part.keeping)  # as they will follow
        complete = list(by_key.values())
        for line in part.warnings:
            if line not in self._warned:
                logger.warning("%s", line)
                self._warned.add(line)
        yield from self._finish(running, complete)
        yield from self._finish(running, [Finished(running.left[key], None) for key in part.late])
        if not part.last:
            return
        running.over = True
        if part.average is not None:
            self._averages[running.number] = running.job.orders[0].message, part.average
        for finished in running.held:
            del running.left[finished.order.key]
            yield finished
        running.held = []

    def _finish(self, running: Running, answers: Sequence[Finished]) -> Iterator[Finished]:
        """Hand answers on; those of a job that is averaged wait for the average."""
        if running.job.reduction is not None:
            running.held.extend(answers)
            return
        for finished in answers:
            del running.left[finished.order.key]
            yield finished

    def _ended(self, stream: Any, running: Running, error: RayError | None) -> Iterator[Finished]:
        """A stream is at its end: a worker is free, or died with clients left.

        Those are tried once more, singly. What a client keeps is replaced only by what has
        arrived with its answer, so one that is tried again starts from where it started before.
        """
        del self._running[stream]
        if error is not None and not isinstance(error, RayTaskError):
            self._replace(running.worker)
        self._free.append(running.worker)
        left = list(running.left.values())
        if not left:
            return
        reason = "the worker died" if error is None else _describe(error)
        if running.again:
            logger.warning("a client failed with its worker, twice: %s", reason)
            yield from (Finished(order, None, reason=reason) for order in left)
            return
        logger.warning(
            "a worker failed with %d clients left, which are tried again: %s", len(left), reason
        )
        exchange, number, _ = running.number
        singles = [
            Waiting(
                replace(running.job, orders=[order], cohort=1),
                (exchange, number, 1 + i),
                again=True,
            )
            for i, order in enumerate(left)
        ]
        self._queue.extendleft(reversed(singles))

    def _replace(self, worker: int) -> None:
        ray.kill(self._actors[worker])
        self._actors[worker] = self._make()
        self._starting[worker] = self._begin(self._actors[worker])
        self._warm.discard(worker)


def _describe(error: RayError) -> str:
    """What happened, in a line."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}".splitlines()[0]
    if isinstance(error, RayActorError):
        return "the worker died"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _finished(told: Told, order: Order) -> Finished:
    """What became of a message whose answer went into an average."""
    if told.problem is not None:
        return Finished(order, Message(Error(UNUSABLE_REPLY, told.problem), reply_to=order.message))
    return Finished(order, Message(RecordDict(), reply_to=order.message), told.said)
