"""A worker as Ray starts it: it imports nothing before it is asked to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from fedwsa.simulation.orders import Job
    from fedwsa.simulation.worker import Worker

# The worker itself is imported in its process alone: Ray is started while others import Flower.


class WorkerActor:
    """The methods that Ray calls; see :class:`fedwsa.simulation.worker.Worker`."""

    _worker: Worker

    def load(self, modules: Sequence[str], paths: Sequence[str], node: str) -> None:
        """Import what a run will need, where it can be.

        Parameters
        ----------
        paths, node
            Where the driver finds modules, and Ray's id of its machine.
        """
        _find(paths, node)
        for name in modules:
            with suppress(Exception):  # told when it is needed
                import_module(name)

    def begin(self, worker: type[Worker], paths: Sequence[str], node: str, *run: Any) -> None:
        """Serve a run.

        Parameters
        ----------
        worker
            What to be.
        paths, node
            As in :meth:`load`; there may be more than when Ray was started.
        *run
            Arguments of :meth:`fedwsa.simulation.worker.Worker.begin`.
        """
        _find(paths, node)
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


def _find(paths: Sequence[str], node: str) -> None:
    """Find modules where the driver does, and first what it finds first, if it runs here.

    Ray puts the driver's working folder first, and what lies there may be named like anything.
    """
    own = [path for path in sys.path if path not in paths]
    here = ray.get_runtime_context().get_node_id() == node
    sys.path[:] = [*paths, *own] if here else [*sys.path, *(p for p in paths if p not in sys.path)]
