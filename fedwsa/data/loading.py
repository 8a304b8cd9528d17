"""From a source to a data set: decoded once, kept on disk, mapped by every process.

The decoded examples lie in one safetensors file in the cache. Loading maps the file, so that
all processes of a machine share one copy in the page cache.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedwsa.config.blame import blaming
from fedwsa.config.component import Component, ConfigError, build
from fedwsa.data.cache import fetch, keep, place
from fedwsa.data.documents import DocumentData
from fedwsa.data.examples import Examples, LabelledData
from fedwsa.data.images import ImageData
from fedwsa.data.keys import digest, of_code, of_component, versions
from fedwsa.data.measurements import Measurements
from fedwsa.data.text import TextData

_DECODERS = ("numpy", "torch", "pandas", "pillow", "pyarrow", "scikit-learn", "torchvision")

logger = logging.getLogger("fedwsa")

KINDS: dict[str, type[LabelledData]] = {
    kind.kind: kind for kind in (ImageData, TextData, Measurements, DocumentData)
}


@dataclass(frozen=True)
class Source:
    """Where examples come from.

    Attributes
    ----------
    key : str
        Names the content: the same key, made by the same code, the same examples.
    decode : callable
        Returns the data set; called when the cache has none.
    classes : tuple of str
        Names of the classes in the order of the labels, where they have names.
    made_of : str or None
        What else the content depends on; None: that cannot be known, and it is not cached.
    """

    key: str
    decode: Callable[[], LabelledData]
    classes: tuple[str, ...] = ()
    made_of: str | None = ""

    @property
    def content(self) -> str | None:
        """Names the examples, with what they are made by; None: nothing does."""
        code = of_code((), self.decode)
        if code is None or self.made_of is None:
            return None
        return f"{self.key}-{digest(code, self.made_of, versions(*_DECODERS))[:12]}"


def open_source(dataset: Component, supplied: Mapping[str, Any] | None = None) -> Source:
    """The source that the configuration names.

    ``supplied`` are arguments that the configuration cannot set.
    """
    source = build(dataset, "dataset", supplied=supplied)
    if not isinstance(source, Source):
        raise ConfigError(
            f"dataset._target_: {dataset.target} must return a fedwsa.data.loading.Source, "
            f"not {type(source).__name__}"
        )
    if dataset.target.startswith("fedwsa."):  # its key says all
        return source
    return replace(source, made_of=of_component(dataset, source.decode))


def load(source: Source, cache_dir: str | Path) -> LabelledData:
    """The data of a source, from the cache if they are there; else decode and cache them.

    Other code is another cache file: who changes a source gets what it makes now.

    Raises
    ------
    ConfigError
        If the source raises, what it makes is no data set, or ``cache_dir`` is no folder.
    """
    content = source.content
    if content is None:
        logger.info("dataset: %s is not kept in cache_dir: its code may have changed", source.key)
        return _decoded(source)
    file = place(cache_dir) / "data" / f"{content}.safetensors"
    found = _as_data(fetch(file))
    if found is None:
        decoded = _decoded(source)
        facts = {"kind": decoded.kind, "classes": decoded.classes, **decoded.facts()}
        parts = _tensors("train", decoded.train) | _tensors("test", decoded.test)
        kept = keep(file, _apart(parts), {"facts": json.dumps(facts)})
        # Read back, so that the first process shares the mapped copy too.
        return (_as_data(fetch(file)) if kept else None) or decoded
    return found


def _as_data(cached: tuple[dict[str, Tensor], dict[str, str]] | None) -> LabelledData | None:
    """What a file of the cache holds; None if it is not what :func:`load` wrote."""
    if cached is None:
        return None
    tensors, metadata = cached
    try:
        facts = json.loads(metadata["facts"])
        kind = KINDS[facts.pop("kind")]
        return kind(_examples("train", tensors), _examples("test", tensors), **facts)
    except (KeyError, TypeError, ValueError):
        return None


def _decoded(source: Source) -> LabelledData:
    """What a source makes, if it is a data set."""
    with blaming(ConfigError, f"dataset: {source.key}: ", kinds=False):
        decoded = source.decode()
        if not isinstance(decoded, LabelledData):
            kinds = " or ".join(kind.__name__ for kind in KINDS.values())
            raise TypeError(f"decode must return {kinds}, not {type(decoded).__name__}")
        decoded.require()
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
