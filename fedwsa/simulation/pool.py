"""The Ray actors: jobs to those that are free, answers as they come, the dead replaced."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import ray
from flwr.app import Message
from flwr.clientapp import ClientApp
from ray import ObjectRef
from ray.exceptions import RayActorError, RayError, RayTaskError

from fedwsa.simulation.transport import PackedContent
from fedwsa.simulation.worker import Answers, Job, Worker

logger = logging.getLogger("fedwsa")

_PATIENCE = 1.0  # seconds that a worker which is to be kept has, to end what it does

Number = tuple[int, int, int]
"""The exchange that a job belongs to, and where it stands in the order of sums: its own number,
and which part of it, if it was cut."""


@dataclass
class Finished:
    """A client's answer.

    Attributes
    ----------
    message : Message
        What it answers.
    reply : Message or None
        Without content; None: it failed with its worker, twice.
    content : dict or None
        Packed.
    state : ObjectRef or None
        Its new state, if it changed.
    reason : str
        Why there is no reply.
    """

    message: Message
    reply: Message | None
    content: PackedContent | None = None
    state: ObjectRef[PackedContent] | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Waiting:
    job: Job
    number: Number
    deadline: float | None  # by time.monotonic()
    again: bool = False  # a second try, after the death of a worker


@dataclass
class _Running:
    job: Job
    worker: int
    number: Number
    deadline: float | None
    again: bool
    held: list[Finished] = field(default_factory=list)  # until the job's average is there
    states: deque[Finished] = field(default_factory=deque)  # whose states come next
    answered: set[str] = field(default_factory=set)


class Pool:
    """Workers in Ray actors.

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
    ) -> None:
        app_ref = ray.put(app)
        options = {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        actor: Any = ray.remote(Worker).options(**options)
        self._make: Callable[[], Any] = lambda: actor.remote(app_ref, run_id, partitions)
        self._kind = _kind(gpus, cpus) if keep else None
        kept = _take(self._kind, workers)
        for worker in kept:
            worker.begin.remote(app_ref, run_id, partitions)
        self._actors: list[Any] = kept + [self._make() for _ in range(workers - len(kept))]
        self._starting = [actor.ready.remote() for actor in self._actors]
        self._warm: set[int] = set()
        self._free = deque(range(workers))
        self._queue: deque[_Waiting] = deque()
        self._running: dict[Any, _Running] = {}
        self._warned: set[str] = set()
        self._exchanges = count()
        self._averages: dict[Number, tuple[Message, PackedContent]] = {}

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self._actors)

    def busy(self, exchange: int) -> bool:
        """Whether any job of an exchange is running or waiting."""
        return any(
            job.number[0] == exchange
            for jobs in (self._queue, self._running.values())
            for job in jobs
        )

    def held(self, exchange: int) -> int:
        """How many answers have come that wait for the average of their job."""
        return sum(len(r.held) for r in self._running.values() if r.number[0] == exchange)

    def take_averages(self, exchange: int) -> list[tuple[Message, PackedContent]]:
        """The averages of an exchange in the order of their jobs, each with a message in it."""
        numbers = sorted(number for number in self._averages if number[0] == exchange)
        return [self._averages.pop(number) for number in numbers]

    def await_ready(self, patience: float = 60.0) -> None:
        """Return when all workers live and have imported torch: that is no client's time."""
        for i, actor in enumerate(self._actors):
            if i not in self._warm:
                self._starting[i] = actor.warm.remote()
                self._warm.add(i)
        ray.wait(self._starting, num_returns=len(self._starting), timeout=patience)

    def submit(self, jobs: Sequence[Job], deadline: float | None = None) -> int:
        """Put the jobs of an exchange in the queue; returns its number.

        None of them works past ``deadline``, by ``time.monotonic()``.
        """
        exchange = next(self._exchanges)
        self._queue.extend(_Waiting(job, (exchange, i, 0), deadline) for i, job in enumerate(jobs))
        self._dispatch()
        return exchange

    def collect(self, timeout: float) -> Iterator[Finished]:
        """Answers that have come, after waiting up to ``timeout`` seconds for the first."""
        self._dispatch()
        if not self._running:
            return
        ready, _ = ray.wait(list(self._running), timeout=timeout, num_returns=1)
        while ready:
            for stream in ready:
                yield from self._read(stream)
            self._dispatch()
            if not self._running:
                return
            ready, _ = ray.wait(list(self._running), timeout=0, num_returns=len(self._running))

    def forget_waiting(self, exchange: int) -> None:
        """Start none of the jobs of an exchange that wait."""
        self._queue = deque(job for job in self._queue if job.number[0] != exchange)

    def abandon(self, exchange: int) -> None:
        """Give up an exchange; workers that run something of it are replaced."""
        self.forget_waiting(exchange)
        for stream, running in list(self._running.items()):
            if running.number[0] == exchange:
                self._replace(running.worker)
                self._free.append(running.worker)
                del self._running[stream]

    def close(self) -> None:
        """End the actors, or leave those that have nothing to do for the next pool."""
        end = time.monotonic() + _PATIENCE
        while self._kind is not None and self._running and time.monotonic() < end:
            for _ in self.collect(0.1):  # the ends of streams whose last answer has been taken
                pass
        working = {running.worker for running in self._running.values()}
        for i, actor in enumerate(self._actors):
            if self._kind is None or i in working:
                ray.kill(actor)
            else:
                _kept.append((self._kind, actor))

    def _dispatch(self) -> None:
        while self._queue and self._free:
            next_ = self._queue.popleft()
            worker, job = self._free.popleft(), next_.job
            if next_.deadline is not None:
                job = replace(job, seconds=next_.deadline - time.monotonic())
            stream = self._actors[worker].run.options(num_returns="streaming").remote(job)
            self._running[stream] = _Running(job, worker, next_.number, next_.deadline, next_.again)

    def _read(self, stream: Any) -> Iterator[Finished]:
        """The next object of a job's stream."""
        running = self._running[stream]
        try:
            reference = next(stream)
            if running.states:
                finished = running.states.popleft()
                finished.state = reference
                yield from self._finish(running, [finished])
                return
            part: Answers = ray.get(reference)
        except StopIteration:
            yield from self._done(stream, running)
        except RayError as error:
            yield from self._failed(stream, running, error)
        else:
            yield from self._take(running, part)

    def _take(self, running: _Running, part: Answers) -> Iterator[Finished]:
        asked = {order.message.metadata.message_id: order.message for order in running.job.orders}
        complete = []
        for reply, content in part.rows:
            key = reply.metadata.reply_to_message_id
            finished = Finished(asked[key], reply, content)
            if key in part.states:
                running.states.append(finished)
            else:
                complete.append(finished)
        for line in part.warnings:
            if line not in self._warned:
                logger.warning("%s", line)
                self._warned.add(line)
        if part.average is not None:
            self._averages[running.number] = running.job.orders[0].message, part.average
        yield from self._finish(running, complete)

    def _finish(self, running: _Running, answers: Sequence[Finished]) -> Iterator[Finished]:
        """Hand answers on; those of a job that is averaged wait for the average."""
        if running.job.rules is not None:
            running.held.extend(answers)
            return
        running.answered.update(a.message.metadata.message_id for a in answers)
        yield from answers

    def _done(self, stream: Any, running: _Running) -> Iterator[Finished]:
        del self._running[stream]
        self._free.append(running.worker)
        yield from running.held

    def _failed(self, stream: Any, running: _Running, error: RayError) -> Iterator[Finished]:
        """A worker died, or could not send: try its unfinished clients once more, singly.

        States are kept outside the workers and only replaced by an answer that has arrived, so
        a client that is tried again starts from where it started before.
        """
        del self._running[stream]
        self._averages.pop(running.number, None)
        if isinstance(error, RayActorError) or not isinstance(error, RayTaskError):
            self._replace(running.worker)
        self._free.append(running.worker)
        left = [
            order
            for order in running.job.orders
            if order.message.metadata.message_id not in running.answered
        ]
        reason = _describe(error)
        if running.again:
            logger.warning("a client failed with its worker, twice: %s", reason)
            yield from (Finished(order.message, None, reason=reason) for order in left)
            return
        logger.warning(
            "a worker failed with %d clients left, which are tried again: %s", len(left), reason
        )
        exchange, number, _ = running.number
        singles = [
            _Waiting(
                replace(running.job, orders=[order], cohort=1),
                (exchange, number, 1 + i),
                running.deadline,
                again=True,
            )
            for i, order in enumerate(left)
        ]
        self._queue.extendleft(reversed(singles))

    def _replace(self, worker: int) -> None:
        ray.kill(self._actors[worker])
        self._actors[worker] = self._make()
        self._starting[worker] = self._actors[worker].ready.remote()
        self._warm.discard(worker)


_kept: list[tuple[tuple[Any, ...], Any]] = []
"""Workers without a run, each with what it must have in common with the next one's."""


def _kind(gpus: float, cpus: float) -> tuple[Any, ...]:
    """What a worker that was started now would have: Ray's job, a share, where code is found."""
    return _session(), gpus, cpus, os.getcwd(), tuple(sys.path)


def _session() -> str:
    """Which Ray this is; jobs of two are numbered alike."""
    return str(ray.get_runtime_context().get_node_id())


def _take(kind: tuple[Any, ...] | None, most: int) -> list[Any]:
    """Kept workers of a kind; those of others end, as they hold the places of new ones."""
    alike = [(other, actor) for other, actor in _kept if other == kind]
    for other, actor in _kept:
        if other != kind and other[0] == _session():  # else they ended with their Ray
            ray.kill(actor)
    _kept[:] = alike[most:]
    return [actor for _, actor in alike[:most]]


def _describe(error: RayError) -> str:
    """What happened, in a line."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}".splitlines()[0]
    if isinstance(error, RayActorError):
        return "the worker died"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
