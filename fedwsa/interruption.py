"""Ctrl-C and SIGTERM end a command at any moment, even where Python swallows what they raise.

A ``KeyboardInterrupt`` that is raised in a callback of the garbage collector is printed and
forgotten. So the handler also leaves a note, and whatever works for long asks by :func:`check`
whether it is there. Nothing is raised while a module is imported: the import machinery may just
have taken a lock, which it would keep, and every thread that imports would wait for ever; and a
module that is written in C++ may have no way to pass an exception on, and would abort the process.
Nor while a process is started: Python prints and forgets what its hooks around a fork raise, and
nobody would know of a process whose start was cut off.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_SOON = 0.02  # seconds until a signal that came during an import or a start is tried again
_STARTS = subprocess.Popen.__init__.__code__

_name = ""  # of the command
_number = 0  # the signal that came
_ending = False
_leave: Callable[[], None] | None = None  # while nothing has begun


def watch(name: str) -> None:
    """Answer both signals from now on; for commands alone, a library leaves them to its user.

    The first raises ``KeyboardInterrupt``, another one ends the process at once. What is ignored,
    as it is in the background of a shell, stays so.

    Parameters
    ----------
    name
        The command, which begins the line that is said where nobody else answers.
    """
    global _name
    _name = name
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _came)
    sys.excepthook = _end_in_one_line
    os.register_at_fork(after_in_child=_leave_to_python)


@contextmanager
def starting(leave: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Around the imports of a command, which take seconds: a signal ends the process at once.

    Parameters
    ----------
    leave
        Called before, for what was started already.
    """
    global _leave
    outer, _leave = _leave, leave
    try:
        yield
    finally:
        _leave = outer


def asked() -> bool:
    """Whether the command is to end."""
    return _number != 0


def check() -> None:
    """Go on only if the command is not to end.

    Raises
    ------
    KeyboardInterrupt
        If it is.
    """
    if _number:
        if threading.current_thread() is threading.main_thread():
            signal.alarm(0)  # raised once, not again on the way out
        raise KeyboardInterrupt


def code() -> int:
    """The exit code of a command that was interrupted: 130, after SIGTERM 143."""
    return 128 + (_number or signal.SIGINT)


def end_at_once() -> None:
    """What comes from now on, while the process ends, is not worth a word."""
    global _ending
    _ending = True
    signal.alarm(0)


def _came(number: int, frame: FrameType | None) -> None:
    global _number
    first, _number = not _number, number
    if _ending or not first:
        os._exit(code())
    if _leave is not None:
        os.write(2, f"{_name}: interrupted\n".encode())  # a handler must not use a buffer
        _leave()
        os._exit(code())
    _interrupt(number, frame)


def _interrupt(_: int, frame: FrameType | None) -> None:
    signal.alarm(0)  # of a handler below Python, as Ray sets: it would abort a slow end
    if _cannot_stop(frame):
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, _SOON)
        return
    raise KeyboardInterrupt


def _cannot_stop(frame: FrameType | None) -> bool:
    """Whether a module is being imported or a process started, however far inside."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib") or code is _STARTS:
            return True
        frame = frame.f_back
    return False


def _end_in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show an exception that nobody caught, if it is not a signal's, however disguised."""
    if not asked():
        sys.__excepthook__(kind, error, trace)
        return
    print(f"{_name}: interrupted", file=sys.stderr, flush=True)
    os._exit(code())


def _leave_to_python() -> None:
    """A forked process is not the command."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is _came:
            signal.signal(number, handler)
