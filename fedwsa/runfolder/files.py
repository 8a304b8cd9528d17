"""Files that are whole or not there, and files of lines that grow by whole lines."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A new empty file beside ``file``, which takes its place where all goes well inside.

    Until then what was there stays. The new one has its suffix, by which libraries choose a
    format. A link stays a link; what is no file, as ``/dev/stdout``, is itself given out.

    Raises
    ------
    OSError
        If it cannot be written; ``filename`` is that of ``file``.
    """
    if file.exists() and not file.is_file():
        yield file
        return
    place = file.resolve()
    part = place.with_name(f".{secrets.token_hex(8)}.part{place.suffix}")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = (place if place.exists() else part).stat().st_mode
        yield part
        part.chmod(stat.S_IMODE(mode))  # some libraries put a file of their own in its place
        sync(part)
        os.replace(part, place)
        with suppress(OSError):  # some file systems sync no folders
            sync(place.parent)
    except OSError as error:
        raise _of(error, file) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a text, whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written; what was there stays.
    """
    with replacing(file) as part:
        part.write_bytes(text.encode())


def sync(*files: Path) -> None:
    """Let files, or folders with the names in them, outlast a power failure."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _of(error: OSError, file: Path) -> OSError:
    """The error as one of a file: a full disk, for instance, names none."""
    if error.errno is None:
        return error
    return OSError(error.errno, error.strerror, str(file))


class Lines:
    """A file of lines, on disk after each addition; an addition that fails leaves no part behind.

    Where the process is killed within one, the last line may be a part of one, without its end:
    :func:`whole_lines` leaves it out.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._handle: int | None = None

    def begin(self, lines: Iterable[str] = ()) -> None:
        """Put these in the place of what is there, at once."""
        self.close()
        write_text(self.file, "".join(lines))
        self._handle = os.open(self.file, os.O_WRONLY | os.O_APPEND)

    def add(self, lines: Iterable[str]) -> None:
        """Add lines, each with its end, to a file that was begun.

        Raises
        ------
        OSError
            If they cannot be written; none is there then.
        """
        assert self._handle is not None
        left = memoryview("".join(lines).encode())
        before = os.fstat(self._handle).st_size
        try:
            while left:
                left = left[os.write(self._handle, left) :]
        except OSError as error:
            os.ftruncate(self._handle, before)
            raise _of(error, self.file) from error

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def whole_lines(file: Path) -> str:
    """What a file of lines holds, without the part of a line that a killed process left.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    text = file.read_bytes()
    return text[: text.rfind(b"\n") + 1].decode()
