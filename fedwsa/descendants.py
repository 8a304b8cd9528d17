"""Processes of this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants take.

    Attributes
    ----------
    memory : float
        MB of their own: the sum of PSS, in which shared pages count once, without the pages of
        programs and libraries, whose share depends on who else on the machine has them.
    descriptors, threads : int
        How many are open, and run.
    """

    memory: float
    descriptors: int
    threads: int


def family(root: int) -> list[int]:
    """A process and all that descend from it, parents first."""
    import psutil  # imported where processes are ended: commands are to start fast

    try:
        children = psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return [root]
    return [root, *(child.pid for child in children)]


_OWN = ("Pss_Anon:", "Pss_Shmem:")


def usage(root: int) -> Usage:
    """What a process and all that descend from it take now, as Linux's /proc shows it."""
    memory, descriptors, threads = 0.0, 0, 0
    for pid in family(root):
        place = Path(f"/proc/{pid}")
        with suppress(OSError):  # it has ended meanwhile
            text = (place / "smaps_rollup").read_text()
            memory += sum(int(s.split()[1]) for s in text.splitlines() if s.startswith(_OWN))
            descriptors += len(list((place / "fd").iterdir()))
            threads += len(list((place / "task").iterdir()))
    return Usage(memory / 1024, descriptors, threads)


def end_descendants(root: int) -> None:
    """Kill all that descend from a process, at once and however fast they make others."""
    stopped: set[int] = set()
    while found := set(family(root)[1:]) - stopped:
        _send(found, signal.SIGSTOP)  # so that none makes another meanwhile
        stopped |= found
    _send(stopped, signal.SIGKILL)


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
