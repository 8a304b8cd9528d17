"""Plain values and arrays in two files: a JSON tree, and a safetensors file of its arrays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedwsa.runfolder.files import sync
from fedwsa.scope.weight_scope import WeightScope
from fedwsa.wire import messages

_TREE, _ARRAYS = "state.json", "arrays.safetensors"

PART = "part-"
"""How the name of a folder begins that was not finished, or is no longer wanted."""


class Unstorable(TypeError):
    """A value of a kind that the files do not hold; the message names its type."""


def encode(value: Any, arrays: dict[str, Tensor]) -> Any:
    """A value as JSON has it; tensors go to ``arrays``, and the JSON names them.

    Raises
    ------
    Unstorable
        If it is, or holds, anything but None, numbers, strings, lists, tuples, dicts, tensors,
        NumPy arrays, weight scopes and Flower's records.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray):
        name = str(len(arrays))
        kind = "tensor" if isinstance(value, Tensor) else "array"
        arrays[name] = torch.as_tensor(value).detach().cpu().clone()
        return {kind: name}
    if isinstance(value, np.generic):
        return encode(value.item(), arrays)
    if isinstance(value, WeightScope):
        return {"scope": encode([value.names, value.mean, value.variance], arrays)}
    for kind, record in _RECORDS.items():
        if isinstance(value, record):
            plain = messages.to_tensors(value) if isinstance(value, ArrayRecord) else dict(value)
            return {kind: encode(plain, arrays)}
    if isinstance(value, Mapping):
        return {"dict": [[encode(k, arrays), encode(v, arrays)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [encode(v, arrays) for v in value]}
    raise Unstorable(type(value).__name__)


_RECORDS: dict[str, type[Any]] = {
    "arrays": ArrayRecord,
    "metrics": MetricRecord,
    "config": ConfigRecord,
    "content": RecordDict,
}


def decode(tree: Any, arrays: Mapping[str, Tensor]) -> Any:
    """The value that :func:`encode` made the tree of."""
    if not isinstance(tree, dict):
        return tree
    [(kind, inner)] = tree.items()
    if kind in ("tensor", "array"):
        return arrays[inner] if kind == "tensor" else arrays[inner].numpy()
    if kind == "dict":
        return {decode(k, arrays): decode(v, arrays) for k, v in inner}
    if kind in ("list", "tuple"):
        values = [decode(v, arrays) for v in inner]
        return values if kind == "list" else tuple(values)
    found = decode(inner, arrays)
    if kind == "scope":
        return WeightScope(*found)
    return messages.to_arrays(found) if kind == "arrays" else _RECORDS[kind](found)


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state to a folder that is either whole or not there.

    Raises
    ------
    OSError
        If it cannot be written.
    Unstorable
        If the state holds what the files do not.
    """
    arrays: dict[str, Tensor] = {}
    tree = encode(dict(state), arrays)
    blob = save(arrays)
    text = json.dumps({"sha256": _digest(blob, tree), "state": tree})
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=PART))
    try:
        for name, content in ((_ARRAYS, blob), (_TREE, text.encode())):
            (part / name).write_bytes(content)
            sync(part / name)
        if folder.exists():  # one that is damaged; a folder cannot be replaced in one step
            os.replace(folder, Path(tempfile.mkdtemp(dir=folder.parent, prefix=PART)))
        os.replace(part, folder)
        sync(folder.parent)  # the name of the folder, too
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _digest(arrays: bytes, tree: Any) -> str:
    """SHA-256 of both files' contents; a tree that JSON has read is written as it was."""
    return hashlib.sha256(arrays + json.dumps(tree).encode()).hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """The state that was written to a folder.

    Raises
    ------
    ValueError
        If a file is missing or damaged.
    """
    try:
        whole = json.loads((folder / _TREE).read_text(encoding="utf-8"))
        blob = (folder / _ARRAYS).read_bytes()
        if _digest(blob, whole["state"]) != whole["sha256"]:
            raise ValueError("its digest is another")
        state: dict[str, Any] = decode(whole["state"], load(blob))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return state
