"""A worker as Ray starts it: it imports nothing before it is asked to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedwsa.simulation.orders import Job
    from fedwsa.simulation.worker import Worker

# The worker itself is imported in its process alone: Ray is started while others import Flower.


class WorkerActor:
    """The methods that Ray calls; see :class:`fedwsa.simulation.worker.Worker`."""

    _worker: Worker

    def load(self, modules: Sequence[str]) -> None:
        """Import what a run will need, where it can be."""
        for name in modules:
            with suppress(Exception):  # told when it is needed
                import_module(name)

    def begin(self, worker: type[Worker], paths: Sequence[str], *run: Any) -> None:
        """Serve a run.

        Parameters
        ----------
        worker
            What to be.
        paths
            Where the driver finds modules, which it may have found after Ray was started.
        *run
            Arguments of :meth:`fedwsa.simulation.worker.Worker.begin`.
        """
        sys.path += [path for path in paths if path not in sys.path]
        if not hasattr(self, "_worker"):
            self._worker = worker()
        self._worker.begin(*run)

    def ready(self) -> bool:
        """Return once the worker lives."""
        return True

    def warm(self) -> bool:
        """Import what torch does where an optimiser of its own is made: it is no client's time."""
        import torch._dynamo  # noqa: F401  (its import is what takes the time)

        return True

    def run(self, job: Job) -> Iterator[Any]:
        """Answer a job bit by bit."""
        return self._worker.run(job)
