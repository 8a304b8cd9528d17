"""Interrupting a client whose time is over."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 0.05  # seconds until a client that was importing is interrupted again


class Late(BaseException):
    """The time of a client is over; not an Exception, so that no app swallows it."""


@contextmanager
def limit(end: float) -> Iterator[None]:
    """Interrupt the code inside when the time is over.

    Python code is interrupted at once, a call into a library when it returns; one that never
    does is ended with its process. An import is let through: half of a package would stay behind,
    and break all clients that come later.
    """

    def over(_: int, frame: FrameType | None) -> None:
        if _importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            return
        raise Late

    left = end - time.monotonic()
    if left <= 0:
        raise Late
    previous = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
        if time.monotonic() > end:  # an import was let through, and the rest was short
            raise Late
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported, further out."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
