"""What an exception in somebody else's code is told as: a line, with the place in their file."""

from __future__ import annotations

import logging
import os
import site
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedwsa.launcher import APPS

logger = logging.getLogger("fedwsa")

_OURS = tuple(str(APPS / name) + os.sep for name in ("fedwsa", "server", "clients", "experiments"))
_PACKAGES = {"site-packages", "dist-packages"}  # of whatever environment
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
    reason = _said(error)
    name = type(error).__name__
    text = (f"{name}: {reason}" if reason else name) if kind or not reason else reason
    place = place_of(error)
    text = f"{text} ({place})" if place else text
    if isinstance(error, BaseExceptionGroup):  # the first of them stands for all
        text = f"{text}: {told(error.exceptions[0])}"
    return text


def place_of(error: BaseException) -> str | None:
    """``FILE:LINE``, the innermost place in a file that is neither ours nor installed, if any."""
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        return f"{_short(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        file = frame.filename
        if not file.startswith((*_OURS, *_INSTALLED, "<")) and not _PACKAGES & {*Path(file).parts}:
            return f"{_short(file)}:{frame.lineno}"
    return None


@contextmanager
def blaming(refusal: type[Exception], begin: str, kinds: bool = True) -> Iterator[None]:
    """Around a call into somebody else's code: all that it raises is told in a line.

    ``sys.exit()`` is, too, which would end a run as if all were well; Ctrl-C goes on.

    Parameters
    ----------
    refusal
        What is raised in its place; one that is raised inside stays as it is.
    begin
        How the line begins.
    kinds
        Whether to name the class of a ValueError; many were written for a person.
    """
    try:
        yield
    except (refusal, KeyboardInterrupt):
        raise
    except BaseException as error:
        logger.debug("in somebody's own code:", exc_info=error)  # for run.log
        kind = kinds or not isinstance(error, ValueError)
        raise refusal(f"{begin}{told(error, kind)}") from error


@contextmanager
def telling_theirs(refusal: type[Exception], *known: type[Exception]) -> Iterator[None]:
    """Around everything: the same for what was raised in a file of somebody else's, and only that.

    What has no place in such a file is a fault of ours, and goes on with its traceback; what is
    ``known`` to be written for a person goes on as it is.
    """
    goes_on: tuple[type[BaseException], ...] = (refusal, KeyboardInterrupt, *known)
    try:
        yield
    except goes_on:
        raise
    except BaseException as error:
        if place_of(error) is None or (isinstance(error, SystemExit) and _raised_here(error)):
            raise
        logger.debug("in somebody's own code:", exc_info=error)  # for run.log
        raise refusal(told(error)) from error


def _raised_here(error: BaseException) -> bool:
    """Whether it was raised in a file of ours: a command that ends, whoever has called it."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_OURS)


def _said(error: BaseException) -> str:
    """The message on one line; of a class that cannot say it, none."""
    if isinstance(error, SyntaxError):  # of a file that was imported: Python names it in brackets
        return error.msg or ""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


def _short(file: str) -> str:
    path = Path(file)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
