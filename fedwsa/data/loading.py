"""From a source to a data set: decoded once, kept on disk, mapped by every process.

The decoded examples lie in one safetensors file in the cache. Loading maps the file, so that
all processes of a machine share one copy in the page cache.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fedwsa.blame import told
from fedwsa.components import ConfigError
from fedwsa.data.cache import fetch, place, store
from fedwsa.data.examples import Examples, LabelledData
from fedwsa.data.images import ImageData
from fedwsa.data.text import TextData

KINDS: dict[str, type[LabelledData]] = {kind.kind: kind for kind in (ImageData, TextData)}


@dataclass(frozen=True)
class Source:
    """Where examples come from.

    Attributes
    ----------
    key : str
        Names the content: the same key, made by the same file of code, the same examples.
    decode : callable
        Returns the data set; called when the cache has none.
    classes : tuple of str
        Names of the classes in the order of the labels, where they have names.
    """

    key: str
    decode: Callable[[], LabelledData]
    classes: tuple[str, ...] = ()


def load(source: Source, cache_dir: str | Path) -> LabelledData:
    """The data of a source, from the cache if they are there; else decode and cache them.

    Another file of code is another cache file: who changes a source gets what it makes now.

    Raises
    ------
    ConfigError
        If the source raises, what it makes is no data set, or the cache cannot be written.
    """
    made_by = hashlib.sha256(code_of(source.decode)).hexdigest()[:12]
    file = place(cache_dir) / "data" / f"{source.key}-{made_by}.safetensors"
    cached = fetch(file)
    if cached is None:
        decoded = _decoded(source)
        facts = {"kind": decoded.kind, "classes": decoded.classes, **decoded.facts()}
        parts = _tensors("train", decoded.train) | _tensors("test", decoded.test)
        store(file, _apart(parts), {"facts": json.dumps(facts)})
        cached = fetch(file)  # read back, so that the first process shares the mapped copy too
        if cached is None:
            raise ConfigError(f"cache_dir: {file} cannot be read back")
    tensors, metadata = cached
    facts = json.loads(metadata["facts"])
    kind = KINDS[facts.pop("kind")]
    return kind(_examples("train", tensors), _examples("test", tensors), **facts)


def code_of(function: Callable[..., Any]) -> bytes:
    """The file that a function stands in, as bytes; empty if there is none, as in a notebook."""
    while isinstance(function, partial):
        function = function.func
    try:
        return Path(inspect.getfile(function)).read_bytes()
    except (TypeError, OSError):
        return b""


def _decoded(source: Source) -> LabelledData:
    """What a source makes, if it is a data set."""
    try:
        decoded = source.decode()
        if not isinstance(decoded, LabelledData):
            kinds = " or ".join(kind.__name__ for kind in KINDS.values())
            raise TypeError(f"decode must return {kinds}, not {type(decoded).__name__}")
        decoded.require()
    except ConfigError:
        raise
    except Exception as error:  # a stranger's code may raise anything
        kind = not isinstance(error, ValueError)
        raise ConfigError(f"dataset: {source.key}: {told(error, kind)}") from error
    return decoded


def _tensors(part: str, examples: Examples) -> dict[str, Tensor]:
    named = {"inputs": examples.inputs, "labels": examples.labels, "ids": examples.ids}
    return {f"{part}.{name}": tensor for name, tensor in named.items() if tensor is not None}


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in memory of their own: safetensors stores no two that share it."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found


def _examples(part: str, tensors: dict[str, Tensor]) -> Examples:
    inputs, labels = tensors[f"{part}.inputs"], tensors[f"{part}.labels"]
    return Examples(inputs, labels, tensors.get(f"{part}.ids"))
