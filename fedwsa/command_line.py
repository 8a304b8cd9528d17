"""How commands end: an error is one line on standard error and exit code 1."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from fedwsa import interruption
from fedwsa.config.blame import place_of, telling_theirs, told
from fedwsa.config.component import ConfigError


def fail(command: str, line: str) -> NoReturn:
    """End with a line that says what is wrong and what to do.

    Raises
    ------
    KeyboardInterrupt
        If what went wrong is that a signal came.
    """
    interruption.check()
    print(f"{command}: {line}", file=sys.stderr, flush=True)
    sys.exit(1)


def of_system(error: OSError) -> str:
    """What the system refused: a file that cannot be read or written, or whatever else it says."""
    if not isinstance(error.filename, str) or not error.strerror or place_of(error):
        return told(error)
    return f"cannot use {error.filename}: {error.strerror}"


class Parser(argparse.ArgumentParser):
    """A parser of a command's words, which refuses in one line; argparse itself has two, and 2.

    Parameters
    ----------
    prog
        The command.
    description, epilog
        As argparse has them; the epilog is shown as it stands.
    """

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """End with the line, and where to look."""
        fail(self.prog, f"{message}; --help shows what there is")


@contextmanager
def in_one_line(command: str, interrupted: str = "interrupted") -> Iterator[None]:
    """End a command in one line where it cannot go on, and quietly where nobody reads on.

    Parameters
    ----------
    command
        Its name, which begins the line.
    interrupted
        What is said after Ctrl-C or SIGTERM; the exit code is 130 or 143.
    """
    try:
        try:
            interruption.check()
            with telling_theirs(ConfigError):
                yield
            interruption.check()
        except ConfigError as error:
            fail(command, str(error))
        except BrokenPipeError:  # fedwsa-table RUNS | head
            sys.exit(130)
    except KeyboardInterrupt:
        print(f"{command}: {interrupted}", file=sys.stderr)
        sys.exit(interruption.code())
