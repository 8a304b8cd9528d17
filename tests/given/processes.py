"""Commands that tests start and stop."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedwsa.descendants import end_descendants


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a command; whatever of it is left when the test fails is killed."""
    process = subprocess.Popen(command, text=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            end_descendants(process.pid)
            process.kill()
            process.wait()


def all_end(pids: Sequence[int], seconds: float = 300.0) -> bool:
    """Whether all processes end within some seconds."""
    end = time.monotonic() + seconds
    while any(map(_alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(_alive, pids))


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = [s.split()[1] for s in status.splitlines() if s.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


def command_line(pid: int) -> str:
    """The command line of a process, or what it calls itself; empty: it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
