"""From a source to a data set: decoded once, kept on disk, mapped by every process.

The decoded examples lie in one safetensors file in the cache. Loading maps the file, so that
all processes of a machine share one copy in the page cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

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
        Names the content: the same key, the same examples.
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

    Raises
    ------
    ConfigError
        If the cache cannot be written.
    """
    file = place(cache_dir) / "data" / f"{source.key}.safetensors"
    cached = fetch(file)
    if cached is None:
        decoded = source.decode()
        facts = {"kind": decoded.kind, "classes": decoded.classes, **decoded.facts()}
        tensors = _tensors("train", decoded.train) | _tensors("test", decoded.test)
        store(file, tensors, {"facts": json.dumps(facts)})
        cached = fetch(file)  # read back, so that the first process shares the mapped copy too
        if cached is None:
            raise ConfigError(f"cache_dir: {file} cannot be read back")
    tensors, metadata = cached
    facts = json.loads(metadata["facts"])
    kind = KINDS[facts.pop("kind")]
    return kind(_examples("train", tensors), _examples("test", tensors), **facts)


def _tensors(part: str, examples: Examples) -> dict[str, Tensor]:
    named = {"inputs": examples.inputs, "labels": examples.labels, "ids": examples.ids}
    return {f"{part}.{name}": tensor for name, tensor in named.items() if tensor is not None}


def _examples(part: str, tensors: dict[str, Tensor]) -> Examples:
    inputs, labels = tensors[f"{part}.inputs"], tensors[f"{part}.labels"]
    return Examples(inputs, labels, tensors.get(f"{part}.ids"))
