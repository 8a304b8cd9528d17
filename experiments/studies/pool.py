"""The worker processes of a study, as their parent sees them."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedwsa.config.component import ConfigError
from fedwsa.descendants import end_descendants

_START = (
    "from fedwsa.launcher import find_apps; find_apps(); "
    "from experiments.studies.worker import main; main()"
)
# A worker trains one client at a time; more threads would be those of the other workers' cores.
_THREADS = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"]


class Worker:
    """One process; its answers arrive in the queue that all share.

    Parameters
    ----------
    number
        Which worker it is.
    log
        Where it prints; None: nowhere.
    answers
        Gets (worker, answer); an answer of None says that the process has ended.
    """

    def __init__(self, number: int, log: Path | None, answers: Answers) -> None:
        self.number, self.log = number, log
        with open(os.devnull if log is None else log, "ab") as out:
            self._process = subprocess.Popen(
                # -P: a folder named experiments where the person is must not take our place
                [sys.executable, "-P", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                encoding="utf-8",
                env={**dict.fromkeys(_THREADS, "1"), **os.environ},
                start_new_session=True,  # Ctrl-C is the parent's to answer
            )
        threading.Thread(target=self._listen, args=[answers], daemon=True).start()

    def send(self, task: Mapping[str, Any]) -> None:
        """Give it a task."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died: the queue will say so
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()

    def _listen(self, answers: Answers) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answers.put((self, json.loads(line)))
        answers.put((self, None))

    def end(self) -> None:
        """End it and all that it has started."""
        end_descendants(self._process.pid)
        self._process.kill()
        self._process.wait()

    def epitaph(self) -> str:
        """How it ended, after it did."""
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        where = "" if self.log is None else f"; see {self.log}"
        return f"its worker process {how}{where}"


Answers = queue.Queue[tuple[Worker, dict[str, Any] | None]]


@dataclass
class Job:
    """A task for any worker.

    Attributes
    ----------
    name : str
        Of the cell.
    task : dict
        What the worker gets.
    """

    name: str
    task: dict[str, Any]


class Pool:
    """Hands jobs to workers, in their order, and their answers back.

    Parameters
    ----------
    count
        How many workers.
    cpus
        Cores of each worker's Ray; 0: none is started.
    logs
        Folder of their logs; None: none are written.
    """

    def __init__(self, count: int, cpus: int, logs: Path | None) -> None:
        self._count, self._cpus, self._logs = count, cpus, logs
        self._answers: Answers = queue.Queue()
        self._ready: list[Worker] = []
        self._starting: set[Worker] = set()
        self._at: dict[Worker, Job] = {}
        self.environment: dict[str, Any] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in {*self._ready, *self._starting, *self._at}:
            worker.end()

    @property
    def size(self) -> int:
        """Number of workers: ready, starting, and at work."""
        return len(self._ready) + len(self._starting) + len(self._at)

    def fill(self, jobs: list[Job], begin: Callable[[Job], None] = lambda job: None) -> None:
        """Take jobs from the list for workers that are free; ``begin`` is called before each.

        No more workers are started than there are jobs.
        """
        while self.size < min(self._count, len(jobs) + len(self._at)):
            self._start()
        while jobs and self._ready:
            worker, job = self._ready.pop(0), jobs.pop(0)
            begin(job)
            self._at[worker] = job
            worker.send(job.task)

    def _start(self) -> None:
        numbers = {w.number for w in {*self._ready, *self._starting, *self._at}}
        number = next(n for n in range(self._count) if n not in numbers)
        log = None if self._logs is None else self._logs / f"worker-{number}.log"
        worker = Worker(number, log, self._answers)
        worker.send({"task": "begin", "cpus": self._cpus})
        self._starting.add(worker)

    def answer(self, seconds: float) -> tuple[Job, dict[str, Any]] | None:
        """The next answer to a job; None if none came in time.

        The answer to a job whose worker has died says so; another worker takes its place.

        Raises
        ------
        ConfigError
            If a worker cannot even start.
        """
        try:
            worker, answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
        if worker in self._starting:
            self._starting.remove(worker)
            if answer is None or not answer["ok"]:
                why = worker.epitaph() if answer is None else answer["error"]
                worker.end()
                raise ConfigError(f"a worker does not start: {why}")
            self.environment = answer["environment"]
            self._ready.append(worker)
            return None
        job = self._at.pop(worker, None)
        if answer is None:
            worker.end()
            if worker in self._ready:
                self._ready.remove(worker)
            return None if job is None else (job, {"ok": False, "error": worker.epitaph()})
        assert job is not None
        self._ready.append(worker)
        return job, answer
