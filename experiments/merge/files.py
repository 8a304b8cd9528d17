"""Files of weights: read tensor by tensor, and nothing in them is ever run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedwsa.config.component import Component, ConfigError
from fedwsa.models.inputs import shape_from
from fedwsa.models.weights import is_safetensors, open_torch, open_weights, plain_names


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
        if is_safetensors(file):
            self._open_safetensors()
        else:
            opened = open_torch(file)
            self._stored, self._read = opened.stored, opened.read
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
        shape_from(facts["shape"])
        whole = isinstance(facts["classes"], int) and isinstance(facts["data"]["kind"], str)
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
