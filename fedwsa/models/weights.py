"""Weights in safetensors files, one or several with an index, with or without a wrapper's names."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedwsa.config.component import ConfigError

_AROUND = ("module.", "_module.")
"""Before all names: DataParallel and its distributed twin, Opacus."""

_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Anywhere in a name: torch.compile, FSDP, activation checkpoints. No layer is called so."""

_BESIDE = ("state_dict", "model_state_dict", "model")
"""Where a checkpoint of torch's keeps the weights, if it holds other things beside them."""

INDEX = ".index.json"


@dataclass(frozen=True, eq=False)
class Weights:
    """What is in a file of weights, each read when it is asked for.

    Attributes
    ----------
    stored : dict of str to str
        Name of a tensor in its network → as the file has it.
    read : callable
        Name in the file → tensor.
    metadata : dict of str to str
    files : list of Path
        All that were opened.
    """

    stored: dict[str, str]
    read: Callable[[str], Tensor]
    metadata: dict[str, str]
    files: list[Path]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the file, by name."""
        return {name: self.read(stored) for name, stored in self.stored.items()}


def open_weights(file: Path) -> Weights:
    """Open a safetensors file, or the index of several (``model.safetensors.index.json``).

    Names are read without what wrappers put before them, but where the file is one of ours, which
    has them as its network does: a layer may be called ``module``.

    Raises
    ------
    ConfigError
        If there is none, it is damaged, or the index and its files do not fit.
    """
    if file.is_dir():
        found = sorted(file.glob(f"*{INDEX}")) or sorted(file.glob("*.safetensors"))
        hint = f"; name a file in it, as {found[0]}" if found else ""
        raise ConfigError(f"{file} is a folder{hint}")
    if not file.is_file():
        raise ConfigError(f"there is no file {file}")
    if file.name.endswith(INDEX):
        return _sharded(file)
    opened = _opened(file)
    metadata = opened.metadata() or {}
    return Weights(_names(opened.keys(), file, metadata), opened.get_tensor, metadata, [file])


def is_safetensors(file: Path) -> bool:
    """Whether a file is safetensors, or the index of several, by its name."""
    return file.suffix == ".safetensors" or file.name.endswith(INDEX)


def open_torch(file: Path) -> Weights:
    """Open what ``torch.save`` made of a state dict, without what wrappers put before its names.

    Raises
    ------
    ConfigError
        If it is damaged, or holds anything but weights: nothing in it is run.
    """
    try:
        mapped = zipfile.is_zipfile(file)
        with warnings.catch_warnings(action="ignore"):  # of TorchScript, which is refused
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # what it raises at damaged files is not documented
        if type(error).__name__ == "UnpicklingError":
            raise ConfigError(
                f"{file} holds code or objects beside weights, or is damaged; none of it was run: "
                "save the state dict alone"
            ) from None
        raise ConfigError(f"{file} is damaged, or no file of weights") from None
    for name in _BESIDE:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
            break
    if not isinstance(held, Mapping) or not all(
        isinstance(k, str) and isinstance(t, Tensor) for k, t in held.items()
    ):
        raise ConfigError(f"{file} holds no state dict: names of tensors, and tensors")
    for name, tensor in held.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ConfigError(f"{file}: {name} is sparse, quantized or without content")
    tensors = {name: tensor.detach() for name, tensor in held.items()}
    return Weights(plain_names(tensors, file), tensors.__getitem__, {}, [file])


def _names(stored: Iterable[str], file: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    return {k: k for k in stored} if "fedwsa" in metadata else plain_names(stored, file)


def plain_names(stored: Iterable[str], file: Path | str) -> dict[str, str]:
    """Names without what wrappers put before them → the names as they are.

    Raises
    ------
    ConfigError
        If two names are one without it.
    """
    names = {name: name for name in stored}
    while names:
        inner = {name: _without(name, _WITHIN) for name in names}
        around = next((p for p in _AROUND if all(n.startswith(p) for n in inner.values())), "")
        found: dict[str, str] = {}
        for name, plain in inner.items():
            plain = plain.removeprefix(around)
            if plain in found:
                raise ConfigError(
                    f"{file}: {found[plain]} and {names[name]} are both {plain} without the prefix "
                    "of a wrapper"
                )
            found[plain] = names[name]
        if found.keys() == names.keys():
            break
        names = found
    return names


def _without(name: str, parts: Iterable[str]) -> str:
    for part in parts:
        while f".{part}" in f".{name}":
            name = f".{name}".replace(f".{part}", ".", 1)[1:]
    return name


def prefix_hint(names: Iterable[str]) -> str:
    """A hint where some names, not all, begin as a wrapper's do; else nothing."""
    names = list(names)
    for prefix in _AROUND:
        inside = [name for name in names if name.startswith(prefix)]
        if inside and len(inside) < len(names):
            return (
                f" (some of its names, not all, begin with {prefix} as {inside[0]}: save the state "
                "dict of the network inside its wrapper)"
            )
    return ""


def _opened(file: Path) -> Any:  # its types are half there
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is damaged, or no safetensors file: {reason}") from None


def _sharded(index: Path) -> Weights:
    shard_of, metadata = _index(index)
    opened: dict[str, Any] = {}
    for key, shard in shard_of.items():
        if shard not in opened:
            _require_inside(index, key, shard)
            if not os.path.isfile(index.parent / shard):  # of a name that is too long, too
                raise ConfigError(f"{index}: there is no file {shard}, which is to have {key}")
            opened[shard] = _opened(index.parent / shard)
    for shard, file in opened.items():
        held = set(file.keys())
        for key, place in shard_of.items():
            if place == shard and key not in held:
                raise ConfigError(f"{index}: {shard} lacks {key}, which the index says it has")
        for key in sorted(held):
            if key not in shard_of:
                raise ConfigError(f"{index}: {shard} has {key}, which the index does not name")
            if shard_of[key] != shard:
                raise ConfigError(f"{index}: {key} is in {shard} and in {shard_of[key]}")
    said = {(f.metadata() or {}).get("fedwsa") for f in opened.values()} - {None}
    if len(said) > 1:
        raise ConfigError(f"{index}: its files say different things of their network")
    for text in said:
        metadata.setdefault("fedwsa", str(text))

    def read(key: str) -> Tensor:
        tensor: Tensor = opened[shard_of[key]].get_tensor(key)
        return tensor

    files = [index, *(index.parent / shard for shard in opened)]
    return Weights(_names(shard_of, index, metadata), read, metadata, files)


def _index(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Key → file that has it, and the texts among what else the index says."""

    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for key, value in found:
            twice.extend([key] if key in known else [])
            known[key] = value
        return known

    held: Any = None
    with suppress(OSError, ValueError, RecursionError):
        held = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=pairs)
    if twice:
        raise ConfigError(f"{file} names {twice[0]} twice")
    if not isinstance(held, dict) or not isinstance(held.get("weight_map"), dict):
        raise ConfigError(f"{file} is damaged, or no index of safetensors files: no weight_map")
    for key, shard in held["weight_map"].items():
        if not isinstance(shard, str):
            raise ConfigError(f"{file}: the file of {key} must be a name, not {shard!r}")
    metadata = held.get("metadata")
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return held["weight_map"], {k: v for k, v in texts if isinstance(v, str)}


def _require_inside(index: Path, key: str, shard: str) -> None:
    path = PurePosixPath(shard)
    if path.is_absolute() or ".." in path.parts or "\\" in shard:
        raise ConfigError(f"{index}: {key} is to be in {shard}, outside the folder of the index")
    if path.suffix != ".safetensors":
        raise ConfigError(f"{index}: {key} is to be in {shard}, which is no safetensors file")
