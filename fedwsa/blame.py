"""What an exception in somebody else's code is told as: a line, with the place in their file."""

from __future__ import annotations

import os
import site
import sysconfig
import traceback
from pathlib import Path

from fedwsa.launcher import APPS

_OURS = tuple(str(APPS / name) + os.sep for name in ("fedwsa", "server", "clients", "experiments"))
_INSTALLED = tuple(
    str(Path(folder)) + os.sep
    for folder in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
    }
)


def told(error: BaseException, kind: bool = True) -> str:
    """An exception as ``Kind: message (FILE:LINE)``, on one line.

    The place is the innermost one in a file that is neither ours nor an installed package's; there
    is none if no such file took part.

    Parameters
    ----------
    kind
        Whether to name the exception's class: errors that were written for a person do without.
    """
    reason = " ".join(str(error).split())
    if isinstance(error, SyntaxError):  # of a file that was imported: Python names it in brackets
        reason = error.msg
    name = type(error).__name__
    text = (f"{name}: {reason}" if reason else name) if kind or not reason else reason
    place = _place(error)
    return f"{text} ({place})" if place else text


def _place(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        file = frame.filename
        if not file.startswith((*_OURS, *_INSTALLED, "<")):
            return f"{_short(file)}:{frame.lineno}"
    return None


def _short(file: str) -> str:
    path = Path(file)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
