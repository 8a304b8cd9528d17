"""Files of tensors (safetensors), written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.runfolder.files import replacing


def write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """As :func:`write_tensors`, with the errors of files as they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        save_file({k: t.contiguous() for k, t in tensors.items()}, part, dict(metadata))


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
        write(file, tensors, metadata)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"{key}: cannot write {file}: {reason}") from None


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
