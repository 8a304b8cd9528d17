"""Data sets of the Hugging Face Hub, or of a folder in one of the layouts that it knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.data.cache import place
from fedwsa.data.decoding import BATCH, Background, Encoded, decode_images, in_one_shape
from fedwsa.data.documents import require_tokenizers, tokenized
from fedwsa.data.examples import Examples, LabelledData, numbered
from fedwsa.data.images import ImageData
from fedwsa.data.keys import digest, of_files
from fedwsa.data.loading import Source
from fedwsa.data.splits import TestShare, in_two
from fedwsa.data.tables import LABELS, measured, table_of
from fedwsa.data.transforms import Transforms, transform_of

_TEXTS = ("string", "large_string")

# datasets is imported where data are read, for seconds: who has the cached tensors is spared it.


@dataclass(frozen=True)
class _Asked:
    """What of a data set is wanted: see :func:`hub`."""

    name: str
    config: str | None
    revision: str | None
    train: str
    test: str | float
    image: str | None
    label: str | None
    id: str | None
    text: str | None
    tokenizer: str | None
    sequence: int
    vocabulary: int
    drop: tuple[str, ...]
    background: Background
    transform: Transforms | None


def hub(
    *,
    name: str,
    config: str | None,
    revision: str | None,
    train: str,
    test: TestShare | str,
    image_column: str | None,
    label_column: str | None,
    id_column: str | None,
    text_column: str | None,
    tokenizer: str | None,
    sequence: PositiveInt,
    vocabulary: Annotated[int, Field(gt=3)],
    drop: list[str],
    background: Background,
    transform: Transforms | None,
) -> Source:
    """Images, texts or a table that ``datasets.load_dataset`` loads: the Hub's, or a folder's.

    Parameters
    ----------
    name
        On the Hub, or of a folder with parquet, CSV or image files.
    config, revision
        Which of its configurations, and which version; None: the only one, the newest. What is in
        ``cache_dir`` already stays until another revision is named.
    train, test
        Names of its splits; for the test also a share of the first, of each natural client's or,
        where there is none, of each class's.
    image_column, label_column
        None: the only one of images (without any, all other columns are a table of numbers), and
        the only one of classes. A named label may hold classes, integers, words, true and false.
    id_column
        Names the natural client of each training example.
    text_column
        Of texts with a label each. None: the only one of texts, where all others are the label,
        the client, or dropped.
    tokenizer, sequence, vocabulary
        Of texts: see :func:`fedwsa.data.documents.tokenized`.
    drop
        Columns that are not read, of a table.
    background, transform
        Of images: what shows through where they are transparent, and what is done to each
        (:func:`fedwsa.data.transforms.transform_of`).
    """
    if find_spec("datasets") is None:
        raise ConfigError("dataset=hub: needs the package datasets: pip install 'fedwsa[hub]'")
    asked = _Asked(
        *(name, config, revision, train, test, image_column, label_column, id_column),
        *(text_column, tokenizer, sequence, vocabulary, tuple(drop), background, transform),
    )
    key = digest(asked, *_content(name))
    return Source(f"hub-{key[:24]}", lambda: _decoded(asked))


def _content(name: str) -> tuple[list[str], str]:
    """Names and digest of the files, where the name is a folder's."""
    folder = place(name)
    files = sorted(f for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else []
    if folder.is_dir() and not files:
        raise ConfigError(f"dataset.name: there are no files in {folder}")
    return [str(file.relative_to(folder)) for file in files], of_files(files)


def _decoded(asked: _Asked) -> LabelledData:
    """The data set; what images and tables say of a path is said of its name."""
    try:
        return _read(asked)
    except ConfigError as error:
        line = str(error).replace("dataset.path", "dataset.name")
        raise ConfigError(
            line.replace("in dataset.drop", "in dataset.drop, or a text in dataset.text_column")
        ) from None


def _read(asked: _Asked) -> LabelledData:
    train = _split(asked, asked.train)
    splits = [train] if isinstance(asked.test, float) else [train, _split(asked, asked.test)]
    names = [f"{asked.name}[{split}]" for split in (asked.train, asked.test)]
    text = _text_column(train, asked)
    image = _image_column(train, asked.image) if text is None else None
    if text is not None:
        return _documents(asked, splits, names, text)
    if image is None:
        return _table(asked, splits, names)
    label = _label_column(train, asked.label, asked.id)
    words = _words(train, label, names[0])
    read = [_images(s, image, label, words, n, asked) for s, n in zip(splits, names, strict=False)]
    if asked.id is not None:
        read[0] = replace(read[0], ids=_ids(train, asked.id))
    if isinstance(asked.test, float):
        read = list(in_two(read[0], asked.test))
    return ImageData.of(*in_one_shape(read[0], read[1], names))


def _split(asked: _Asked, split: str) -> Any:
    """A split of the data set; what it says of its columns is in ``features``."""
    import datasets

    path = str(place(asked.name)) if place(asked.name).is_dir() else asked.name
    try:
        return datasets.load_dataset(path, asked.config, split=split, revision=asked.revision)
    except datasets.exceptions.DatasetNotFoundError:
        raise ConfigError(
            f"dataset.name: the Hub has no data set {asked.name}, or none for all"
        ) from None
    except datasets.exceptions.DataFilesNotFoundError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"dataset.name: {asked.name}: {reason}") from None
    except (ConnectionError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"dataset.name: {asked.name} is neither a folder nor in the cache of the package "
            f"datasets, and the Hub could not be asked: {reason}"
        ) from None
    except Exception as error:  # damaged files make it raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"dataset.name: {asked.name}: {reason}") from None


def _image_column(split: Any, wanted: str | None) -> str | None:
    """The column of images; None: there is none."""
    import datasets

    features = split.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if wanted is not None:
        if wanted not in features:
            raise ConfigError(f"dataset.image_column: there is no {wanted}; {_columns(split)}")
        if wanted not in images:
            raise ConfigError(f"dataset.image_column: {wanted} holds no images; {_columns(split)}")
        return wanted
    if len(images) > 1:
        raise ConfigError(
            f"dataset.image_column: there are {len(images)} columns of images, name one: "
            f"{', '.join(images)}"
        )
    return images[0] if images else None


def _text_column(split: Any, asked: _Asked) -> str | None:
    """The column of texts: the one that is wanted, or the only one; None: they are no texts."""
    import datasets

    kinds = split.features.items()
    words = [n for n, k in kinds if isinstance(k, datasets.Value) and k.dtype in _TEXTS]
    if (wanted := asked.text) is not None:
        if wanted not in split.features:
            raise ConfigError(f"dataset.text_column: there is no {wanted}; {_columns(split)}")
        if wanted in (asked.label, asked.id):
            raise ConfigError(f"dataset.text_column: {wanted} is the label or the id of a client")
        if wanted not in words:
            raise ConfigError(f"dataset.text_column: {wanted} holds no texts; {_columns(split)}")
        return wanted
    if asked.image is not None:
        return None
    label = asked.label or _class_column(split, asked.id) or _called_label(split)
    known = {label, asked.id, *asked.drop}
    rest = [name for name in split.features if name not in known]
    if label is None and len(rest) == 2 and len(set(rest) & set(words)) == 1:
        rest = [name for name in rest if name in words]  # the other is the label: whole numbers
    if len(rest) > 1 and set(rest) <= set(words):
        raise ConfigError(
            f"dataset.text_column: there are {len(rest)} columns of texts, name one: "
            f"{', '.join(rest)}"
        )
    return rest[0] if len(rest) == 1 and rest[0] in words else None


def _called_label(split: Any) -> str | None:
    """The only column that is called as one of labels is."""
    found: list[str] = [name for name in split.features if name.lower() in LABELS]
    return found[0] if len(found) == 1 else None


def _documents(
    asked: _Asked, splits: Sequence[Any], names: Sequence[str], text: str
) -> LabelledData:
    require_tokenizers()
    label = _label_column(splits[0], asked.label, asked.id)
    words = _words(splits[0], label, names[0])
    texts, parts = [], []
    for split, name in zip(splits, names, strict=False):
        texts.append(_column(split, text, name, "dataset.text_column").tolist())
        parts.append(Examples(torch.arange(len(split)), _labels(split, label, words, name)))
    if asked.id is not None:
        parts[0] = replace(parts[0], ids=_ids(splits[0], asked.id))
    if isinstance(asked.test, float):
        texts, parts = texts * 2, list(in_two(parts[0], asked.test))
    return tokenized(
        (texts[0], texts[1]),
        (parts[0], parts[1]),
        asked.tokenizer,
        asked.sequence,
        asked.vocabulary,
    )


def _label_column(split: Any, wanted: str | None, ids: str | None) -> str:
    """The column of labels: the one that is wanted, or the only one of classes or of integers."""
    import datasets

    features = split.features
    if wanted is not None:
        if wanted not in features:
            raise ConfigError(f"dataset.label_column: there is no {wanted}; {_columns(split)}")
        kind = features[wanted]
        simple = isinstance(kind, datasets.Value) and not kind.dtype.startswith(("float", "double"))
        if not simple and not isinstance(kind, datasets.ClassLabel):
            raise ConfigError(f"dataset.label_column: {wanted} holds no classes; {_columns(split)}")
        return wanted
    if (only := _class_column(split, ids)) is not None:
        return only
    found: list[str] = [
        n for n, k in features.items() if "int" in getattr(k, "dtype", "") and n != ids
    ]
    if len(found) != 1 and (called := _called_label(split)) is not None:
        return called
    if len(found) != 1:
        count = "no column" if not found else f"{len(found)} columns"
        raise ConfigError(
            f"dataset.label_column: there is {count} of classes, name one; {_columns(split)}"
        )
    return str(found[0])


def _class_column(split: Any, ids: str | None) -> str | None:
    """The only column of classes; None where there is none, or several."""
    import datasets

    kinds = split.features.items()
    found = [n for n, kind in kinds if isinstance(kind, datasets.ClassLabel) and n != ids]
    return str(found[0]) if len(found) == 1 else None


def _columns(split: Any) -> str:
    """What the columns are called and hold, as the end of a line."""
    kinds = {n: type(k).__name__ for n, k in split.features.items()}
    known = {n: getattr(k, "dtype", kinds[n]) for n, k in split.features.items()}
    held = {n: kinds[n] if kinds[n] != "Value" else known[n] for n in kinds}
    return f"it has {', '.join(f'{name} ({kind})' for name, kind in held.items())}"


def _images(
    split: Any, image: str, label: str, words: NDArray[Any] | None, name: str, asked: _Asked
) -> Examples:
    pixels = decode_images(
        _encoded(split, image),
        len(split),
        lambda i: f"{name}, row {i}",
        f"Decoding {name}",
        asked.background,
        transform_of(asked.transform),
    )
    return Examples(pixels, _labels(split, label, words, name))


def _encoded(split: Any, column: str) -> Iterator[Sequence[Encoded]]:
    """The files of images as they are, a batch at a time."""
    import datasets

    undecoded = split.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    for batch in undecoded.iter(batch_size=BATCH):
        images = [image or {"bytes": None, "path": None} for image in batch[column]]
        yield [_file(image["bytes"], image["path"]) for image in images]


def _file(content: bytes | None, path: str | None) -> Encoded:
    return content if content is not None else None if path is None else Path(path)


def _column(split: Any, column: str, name: str, key: str) -> NDArray[Any]:
    """The values of a column, none of which is missing."""
    found = split.with_format("arrow").select_columns([column])[:][column]
    if found.null_count:
        row = found.is_null().to_pylist().index(True)
        raise ConfigError(f"{key}: {name}, row {row}: {column} is missing")
    values: NDArray[Any] = found.to_numpy()
    return values


def _words(split: Any, column: str, name: str) -> NDArray[Any] | None:
    """What the classes are called, in their order; None where they are numbers already."""
    values = _column(split, column, name, "dataset.label_column")
    return None if values.dtype.kind in "iu" else np.unique(values)


def _labels(split: Any, column: str, words: NDArray[Any] | None, name: str) -> Tensor:
    """Numbers of classes; those of words and truths are their places among the classes'."""
    values = _column(split, column, name, "dataset.label_column")
    if words is not None:
        numbers = np.searchsorted(words, values)
        unknown = words[np.minimum(numbers, len(words) - 1)] != values
        if unknown.any():
            row = int(unknown.argmax())
            raise ConfigError(
                f"dataset.label_column: {name}, row {row}: {column} is {values[row]}, which is no "
                "class of the training split"
            )
        values = numbers
    if len(values) and int(values.min()) < 0:
        row = int(values.argmin())
        raise ConfigError(
            f"dataset.label_column: {name}, row {row}: {column} is {int(values[row])}; labels must "
            "be 0 or more"
        )
    return torch.from_numpy(values.astype(np.int64))


def _ids(split: Any, column: str) -> Tensor:
    """The natural client of each row, numbered from 0 in the order of the names."""
    if column not in split.features:
        raise ConfigError(f"dataset.id_column: there is no {column}; {_columns(split)}")
    values = _column(split, column, "the training split", "dataset.id_column")
    return numbered(values)


def _table(asked: _Asked, splits: Sequence[Any], names: Sequence[str]) -> LabelledData:
    """All columns but the label and the id as numbers."""
    label = asked.label or _class_column(splits[0], asked.id)
    wanted = {"label": label, "id": asked.id}
    parts = [
        table_of(split.to_pandas(), name, wanted, asked.drop)
        for split, name in zip(splits, names, strict=False)
    ]
    test = asked.test if isinstance(asked.test, float) else 0.0
    return measured(parts, names[: len(parts)], test, None)
