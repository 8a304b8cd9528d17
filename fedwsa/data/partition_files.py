"""``partition.json``: a partition as every run and ``fedwsa-partition`` leave it.

Who has what stands in it as lists up to :data:`MOST_AS_TEXT` clients; of more it is in a
safetensors file beside it, which the JSON names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from pydantic import ValidationError as PydanticError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedwsa.config.component import ConfigError
from fedwsa.data.partition import Partition
from fedwsa.data.shares import Shares
from fedwsa.runfolder.files import replacing, write_text
from fedwsa.runfolder.read import Unusable, read_json

MOST_AS_TEXT = 10_000
"""Clients whose samples a person may want to read."""

_ARRAYS, _COUNTS = "arrays", "label_counts"


class LabelledPool(BaseModel):
    """The training set that a partition was made for: its size, and a hash of its labels."""

    model_config = ConfigDict(strict=True)

    samples: int
    labels: str


class _Saved(BaseModel):
    """What is read of the file."""

    model_config = ConfigDict(strict=True)

    data: LabelledPool
    hash: str | None = None
    indices: list[list[NonNegativeInt]] | None = None
    arrays: str | None = None


def write_partition(file: Path, partition: Partition) -> None:
    """Write ``partition.json``, and the file beside it if there are very many clients."""
    if len(partition.shares) <= MOST_AS_TEXT or not len(partition.labels):
        write_text(file, json.dumps(partition.as_dict()) + "\n")
        return
    shares, beside = partition.shares, _beside(file)
    arrays: dict[str, NDArray[Any]] = {"indices": shares.indices, "sizes": shares.sizes}
    arrays[_COUNTS] = partition.label_counts
    with replacing(beside) as part:
        save_file(arrays, part)
    write_text(file, json.dumps({**partition.described(), _ARRAYS: beside.name}) + "\n")


def _beside(file: Path) -> Path:
    return file.with_suffix(".safetensors")


def read_described(file: Path) -> dict[str, Any]:
    """What the file says of a partition, with ``label_counts`` wherever they stand.

    Raises
    ------
    Unusable
        If it cannot be read.
    """
    values = read_json(file)
    if _ARRAYS in values:
        try:
            values[_COUNTS] = load_file(_beside(file))[_COUNTS]
        except (OSError, SafetensorError, KeyError):
            raise Unusable(f"its {_beside(file).name} cannot be read") from None
    return values


def read_shares(file: Path, key: str) -> tuple[LabelledPool, Shares]:
    """Who has what, and of which data.

    Raises
    ------
    ConfigError
        If it is no such file; named by ``key``.
    """
    try:
        saved = _Saved.model_validate_json(file.read_bytes())
        if saved.arrays is not None:
            return saved.data, _beside_it(file, saved.hash, key)
    except OSError as error:
        # safetensors says file and reason in one.
        place, reason = error.filename or _beside(file), error.strerror or error
        raise ConfigError(f"{key}: cannot read {place}: {reason}") from None
    except PydanticError as error:
        entry = error.errors()[0]
        where = ".".join(str(part) for part in entry["loc"])
        raise ConfigError(
            f"{key}: {file} is no partition.json: {where}{': ' * bool(where)}{entry['msg']}"
        ) from None
    if saved.indices is None:
        raise ConfigError(f"{key}: {file} is no partition.json: indices: Field required")
    return saved.data, Shares.of(np.array(s, dtype=np.int64) for s in saved.indices)


def _beside_it(file: Path, expected: str | None, key: str) -> Shares:
    """Who has what, from the file beside, whatever name is said of it.

    A cache knows the partition by the JSON alone, so the file must be the one that it tells of.
    """
    try:
        arrays = load_file(_beside(file))
        shares = Shares(arrays["indices"], arrays["sizes"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{key}: {_beside(file)} is damaged: {error}") from None
    if shares.hash != expected:
        raise ConfigError(f"{key}: {_beside(file)} is not the file that {file.name} tells of")
    return shares
