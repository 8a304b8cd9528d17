"""Ray started, or joined, while everything else is read: it takes three seconds of waiting."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from fedwsa import interruption
from fedwsa.descendants import end_descendants
from fedwsa.simulation.cluster import connect, cores

# The rest of the engine is imported in the thread that starts Ray, while everything else is.

_POLL = 0.1  # seconds
_MOST = 2.0  # seconds to let Ray launch its processes
_WORKERS_NEED = ["fedwsa.simulation.worker", "clients.app"]


class RayStart:
    """Starts Ray, or joins a cluster, in the background; once in a process.

    Ray stays until the process ends, so that the runs of a sweep share it.

    Parameters
    ----------
    address
        See :func:`fedwsa.simulation.cluster.connect`.
    workers
        As many begin to import what a run needs, as soon as Ray runs.
    **init
        Arguments of ``ray.init``.
    """

    _current: RayStart | None = None

    def __init__(self, address: str | None, workers: int = 0, **init: Any) -> None:
        self.address, self._workers, self._init = address, workers, init
        self._error: Exception | None = None
        self._done, self._launched = threading.Event(), threading.Event()
        threading.Thread(target=self._connect, daemon=True).start()
        if address is None:
            # What is imported meanwhile would hold up Ray's processes, which have longer to go.
            self._launched.wait(_MOST)

    @classmethod
    def at(cls, address: str | None, workers: int = 0, **init: Any) -> RayStart:
        """The start that is under way or done, or a new one."""
        current = cls._current
        if current is None or current.address != address or current._failed_or_gone:
            if current is not None:
                current.wait()
                if "ray" in sys.modules:  # not where nobody answered at the address
                    sys.modules["ray"].shutdown()
            cls._current = current = cls(address, workers, **init)
        return current

    @classmethod
    def pending(cls) -> bool:
        """Whether a start is under way."""
        return cls._current is not None and not cls._current._done.is_set()

    @classmethod
    def abandon(cls, code: str | int | None) -> None:
        """If a start is under way, end it with this process at once, with an exit code.

        Waiting for it, to shut Ray down in its own way, would take seconds.
        """
        if cls.pending():
            end_descendants(os.getpid())
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)

    @property
    def _failed_or_gone(self) -> bool:
        """Whether it came to nothing, or somebody has shut Ray down since."""
        if not self._done.is_set():
            return False
        return self._error is not None or not sys.modules["ray"].is_initialized()

    def _connect(self) -> None:
        started = False
        try:
            started = connect(self.address, self._launched.set, **self._init)
            if self._workers:
                from fedwsa.simulation import kept  # which imports Ray

                kept.start_early(self._workers, _WORKERS_NEED)
        except Exception as error:
            self._error = error
        self._launched.set()
        self._done.set()
        if started:  # Ray's processes end with the thread that started them
            threading.Event().wait()

    def wait(self) -> Exception | None:
        """Return once Ray runs, or the error if it does not."""
        while not self._done.wait(_POLL):
            interruption.check()
        return self._error


def expects_local_ray(arguments: Sequence[str]) -> bool:
    """Whether a command line looks as if it will simulate on a Ray of this machine."""
    if any(a.startswith("-") and a not in ("--multirun", "-m") for a in arguments):
        return False  # help, another configuration, …: let it be read first
    return not any(a.startswith(("runtime=flower", "runtime.address=")) for a in arguments)


def early_workers(arguments: Sequence[str]) -> int:
    """How many workers a command line looks as if it will have; 0: that must be read first."""
    return 0 if any(a.startswith(("runtime.", "device=")) for a in arguments) else cores()
