"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedwsa.config.component import ConfigError


@contextmanager
def locked(file: Path, in_use: str) -> Iterator[None]:
    """Keep a file to this process inside; the lock ends with the process, however it ends.

    Raises
    ------
    ConfigError
        With the line ``in_use``, if another process has it.
        Or that it cannot be locked at all, as on some network file systems.
    OSError
        If the file cannot be opened.
    """
    with file.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(in_use) from None
        except OSError as error:
            raise ConfigError(f"{file}: cannot be locked: {error.strerror}") from None
        yield
