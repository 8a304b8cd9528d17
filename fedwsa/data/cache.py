"""Tensors kept on disk between runs and shared between processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.runfolder.tensors import write, write_tensors

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
        write(file, tensors, {**metadata, "format": _FORMAT})
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
