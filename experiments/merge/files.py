"""Files of weights: read tensor by tensor, and nothing in them is ever run."""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedwsa.config.component import Component, ConfigError
from fedwsa.models.weights import INDEX, open_weights, plain_names

_WITHIN = ("state_dict", "model_state_dict", "model")
"""Where a checkpoint keeps the weights, if it holds other things beside them."""


class ModelFile(Mapping[str, Tensor]):
    """The weights in a file, each read when it is asked for.

    Parameters
    ----------
    file
        A safetensors file, the index of several (``model.safetensors.index.json``), or what
        ``torch.save`` made of a state dict (``.pt``, ``.pth``). What wrappers put before names
        (``module.``, ``_module.``, ``_orig_mod.``) is left out, but of a file of ours.

    Attributes
    ----------
    facts : dict
        What a file of ours says of its network; empty of others.

    Raises
    ------
    ConfigError
        If there is none, it is damaged, or holds anything but weights.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            open_weights(file)  # says what is wrong
        self.file = file
        self.facts: dict[str, Any] = {}
        self._stored: dict[str, str] = {}
        self._files = [file]
        self._read: Callable[[str], Tensor]
        known = file.suffix == ".safetensors" or file.name.endswith(INDEX)
        (self._open_safetensors if known else self._open_torch)()
        if not self._stored:
            raise ConfigError(f"{file} holds no weights")

    def _open_safetensors(self) -> None:
        opened = open_weights(self.file)
        try:
            facts = json.loads(opened.metadata.get("fedwsa", "{}"))
        except ValueError:
            raise ConfigError(f"{self.file}: what it says of its network is damaged") from None
        self._stored, self._read, self._files = opened.stored, opened.read, opened.files
        self.facts = _checked(facts, self.file)

    def _open_torch(self) -> None:
        try:
            mapped = zipfile.is_zipfile(self.file)
            with warnings.catch_warnings(action="ignore"):  # of TorchScript, which is refused
                held = torch.load(self.file, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # what it raises at damaged files is not documented
            if type(error).__name__ == "UnpicklingError":
                raise ConfigError(
                    f"{self.file} holds code or objects beside weights, or is damaged; none of it "
                    "was run: save the state dict alone"
                ) from None
            raise ConfigError(f"{self.file} is damaged, or no file of weights") from None
        for name in _WITHIN:
            if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
                held = held[name]
                break
        if not isinstance(held, Mapping) or not all(
            isinstance(k, str) and isinstance(t, Tensor) for k, t in held.items()
        ):
            raise ConfigError(f"{self.file} holds no state dict: names of tensors, and tensors")
        for name, tensor in held.items():
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
                raise ConfigError(f"{self.file}: {name} is sparse, quantized or without content")
        tensors = {name: tensor.detach() for name, tensor in held.items()}
        self._stored, self._read = plain_names(tensors, self.file), tensors.__getitem__

    def name_as(self, other: ModelFile) -> None:
        """Take the names of a file of the same network, whatever wrapper stands before either."""
        own, theirs = (plain_names(m._stored.values(), m.file) for m in (self, other))
        if own.keys() == theirs.keys():
            self._stored = {theirs[name]: stored for name, stored in own.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._read(self._stored[name])

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def digest(self) -> str:
        """SHA-256 of the file; of an index and its files those of each, one after the other."""
        found = []
        for file in self._files:
            with file.open("rb") as opened:
                found.append(hashlib.file_digest(opened, "sha256"))
        if len(found) == 1:
            return found[0].hexdigest()
        return hashlib.sha256(b"".join(one.digest() for one in found)).hexdigest()

    @property
    def wrapped(self) -> str | None:
        """A name in the file that a wrapper (as DataParallel) has added to, if one has."""
        return next((stored for name, stored in self._stored.items() if name != stored), None)


def _checked(facts: Any, file: Path) -> dict[str, Any]:
    """What a file says of its network; nothing, if that is not what it says."""
    if not isinstance(facts, dict) or "model" not in facts:
        return {}
    try:
        Component.model_validate(facts["model"])
        whole = all(isinstance(size, int) for size in (*facts["shape"], facts["classes"]))
        whole = whole and isinstance(facts["data"]["kind"], str)
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ConfigError(f"{file}: what it says of its network is damaged")
    return facts


def require_one_kind(models: list[ModelFile]) -> None:
    """Refuse networks, of ours, that differ in more than their weights.

    Raises
    ------
    ConfigError
        Names the two files and what differs.
    """
    known = [model for model in models if model.facts]
    for other in known[1:]:
        for what, key in {
            "networks": "model",
            "input shapes": "shape",
            "classes": "classes",
        }.items():
            one, two = known[0].facts.get(key), other.facts.get(key)
            if one != two:
                raise ConfigError(
                    f"{known[0].file} and {other.file} are of other {what}: {one} and {two}"
                )
        one, two = (model.facts.get("data", {}) for model in (known[0], other))
        if one.get("kind") != two.get("kind"):
            raise ConfigError(
                f"{known[0].file} looks at {one.get('kind')}, {other.file} at {two.get('kind')}"
            )
        if one.get("vocabulary") != two.get("vocabulary"):
            raise ConfigError(
                f"{known[0].file} and {other.file} have other tokens: {_differing(one, two)}"
            )


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    left, right = (str(facts.get("vocabulary", "")) for facts in (one, two))
    unlike = sorted(set(left) ^ set(right))
    return f"{unlike[0]!r} is in one alone" if unlike else "their order"
