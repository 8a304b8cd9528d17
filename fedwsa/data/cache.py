"""Tensors kept on disk between runs and shared between processes."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.runfolder.files import replacing

_FORMAT = "1"

logger = logging.getLogger("fedwsa")


def place(path: str | Path) -> Path:
    """A path as this machine has it: ``~`` and environment variables stand for its own."""
    return Path(os.path.expandvars(path)).expanduser()


def fetch(file: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and metadata of a cached file, mapped into memory, not copied.

    None if there is no such file, or it is damaged or of another format: make it anew.
    """
    try:
        if not file.is_file():
            return None
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != _FORMAT:
                return None
            return {k: opened.get_tensor(k) for k in opened.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError):
        return None


def keep(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Write a file for :func:`fetch` where the cache may be written; whether it was.

    A cache that is full or may only be read is done without, with a warning.

    Raises
    ------
    ConfigError
        If ``cache_dir`` is no place for files at all.
    """
    try:
        _write(file, tensors, {**metadata, "format": _FORMAT})
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"cache_dir: cannot write {file}: {error}") from None
    except (OSError, SafetensorError) as error:
        logger.warning("cache_dir: cannot write %s, going on without: %s", file, error)
        return False
    return True


def store(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], key: str = "cache_dir"
) -> None:
    """Write a file for :func:`fetch`; ``key`` is what the configuration calls its place.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    write_tensors(file, tensors, {**metadata, "format": _FORMAT}, key)


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], key: str
) -> None:
    """Write a safetensors file that is either whole or not there, whoever else writes it too.

    Parameters
    ----------
    metadata
        With more than one entry, safetensors writes them in an order that differs from run to run.
    key
        What the configuration calls its place.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    try:
        _write(file, tensors, metadata)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"{key}: cannot write {file}: {reason}") from None


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        save_file({k: t.contiguous() for k, t in tensors.items()}, part, dict(metadata))


def require_writable(file: Path, key: str) -> None:
    """Refuse a place where no file can be written, before there is anything to write.

    Raises
    ------
    ConfigError
        If there is a file already, or none can be.
    """
    try:
        if file.exists():
            what = "a folder" if file.is_dir() else "there already"
            raise ConfigError(f"{key}: {file} is {what}; name another file")
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{key}: cannot write {file}: {error}") from None
