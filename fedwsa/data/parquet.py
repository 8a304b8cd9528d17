"""Images and labels in parquet files, by Arrow's types, a batch of rows at a time."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedwsa.config.component import ConfigError
from fedwsa.data.decoding import BATCH, Background, Encoded, Transform, decode_images
from fedwsa.data.examples import Examples, numbered

# pyarrow is imported where a file is read: who has the cached tensors is spared it.

_BATCH_BYTES = 1 << 26  # of encoded images that are read at once, about
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.parquet")


def part_files(folder: Path, part: str) -> list[Path]:
    """The file of a part, or its shards, all of them."""
    whole = folder / f"{part}.parquet"
    shards = sorted(f for f in folder.glob(f"{part}-*.parquet") if _SHARD.search(f.name))
    if whole.is_file() and shards:
        raise ConfigError(
            f"dataset.path: there are both {whole} and shards as {shards[0].name}; keep either"
        )
    if not shards:
        if not whole.is_file():
            raise ConfigError(f"dataset.path: there is no file {whole}")
        return [whole]
    first = _SHARD.search(shards[0].name)
    assert first is not None
    digits, count = len(first[1]), first[2]
    for i in range(int(count)):
        expected = folder / f"{part}-{i:0{digits}d}-of-{count}.parquet"
        if expected not in shards:
            raise ConfigError(f"dataset.path: there is no file {expected}, a shard of {int(count)}")
    if len(shards) != int(count):
        raise ConfigError(f"dataset.path: {folder} has {len(shards)} shards of {part}, not {count}")
    return shards


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What Arrow raises, as a line that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"dataset.path: {file} is not a readable parquet file: {reason}"
        ) from None


def read_part(
    files: Sequence[Path],
    wanted: dict[str, str | None],
    background: Background,
    transform: Transform | None = None,
) -> Examples:
    """The images and labels of a part, shard after shard.

    Parameters
    ----------
    wanted
        Names of the columns ``image``, ``label`` and ``id``; None: found by their types.

    Raises
    ------
    ConfigError
        Names the file, and the row that is refused.
    """
    counts, labels = [], []
    for file in files:
        image, label, count = _columns(file, wanted)
        wanted = {**wanted, "image": image, "label": label}  # the same in each shard
        counts.append(count)
        labels.append(_labels(file, label))
    if not sum(counts):
        raise ConfigError(f"dataset.path: {files[0]} has no rows")
    batches = (batch for file in files for batch in _images(file, image))
    ends = np.cumsum(counts)

    def name(i: int) -> str:
        shard = int(np.searchsorted(ends, i, side="right"))
        return f"{files[shard]}, row {i - (ends[shard] - counts[shard])}"

    what = f"Decoding {files[0].name}"
    pixels = decode_images(batches, sum(counts), name, what, background, transform)
    return Examples(pixels, torch.from_numpy(np.concatenate(labels)))


def _columns(file: Path, wanted: dict[str, str | None]) -> tuple[str, str, int]:
    """The columns of images and labels, and the number of rows."""
    columns, count = _schema(file)
    image, label = wanted["image"], wanted["label"]
    named = (image, label)  # the label may be the id, too
    columns = {k: kind for k, kind in columns.items() if k != wanted["id"] or k in named}
    image = _column(columns, image, _is_image, "image_column", "encoded images", file)
    label = _column(columns, label, _is_integer, "label_column", "integers", file)
    return image, label, count


def _schema(file: Path) -> tuple[dict[str, Any], int]:
    """Types of the columns, and the number of rows."""
    import pyarrow.parquet as pq

    with _reading(file), pq.ParquetFile(file) as opened:
        columns = list(opened.schema_arrow)
        count = opened.metadata.num_rows
    for name, times in Counter(column.name for column in columns).items():
        if times > 1:
            raise ConfigError(f"dataset.path: {file} has {times} columns named {name}")
    return {column.name: column.type for column in columns}, count


def require_one_numbering(files: Sequence[Path], wanted: dict[str, str | None]) -> None:
    """Refuse files whose labels are numbers of other classes, as Hugging Face's metadata say.

    Parameters
    ----------
    wanted
        As for :func:`read_part`.

    Raises
    ------
    ConfigError
        Names two files, and the first number that means something else.
    """
    known: dict[int, tuple[str, Path]] = {}
    for file in files:
        _, label, _ = _columns(file, wanted)
        for number, name in enumerate(_class_names(file, label)):
            first, other = known.setdefault(number, (name, file))
            if name != first:
                raise ConfigError(
                    f"dataset.path: {label} {number} is {name} in {file}, and {first} in {other}"
                )


def _class_names(file: Path, column: str) -> list[str]:
    """What Hugging Face's metadata call the classes of a column; empty if they do not say."""
    import pyarrow.parquet as pq

    with _reading(file):
        said = pq.read_schema(file).metadata or {}
    names: Any = None
    with suppress(KeyError, TypeError, ValueError, RecursionError):
        names = json.loads(said[b"huggingface"])["info"]["features"][column]["names"]
    return [str(name) for name in names] if isinstance(names, list) else []


def _images(file: Path, column: str) -> Iterator[list[Encoded]]:
    """The encoded images of a file, a batch at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with _reading(file), pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as opened:
        for batch in opened.iter_batches(_batch_rows(opened.metadata, column), columns=[column]):
            encoded = batch.column(0)
            if isinstance(encoded, pa.ExtensionArray):
                encoded = encoded.storage
            if not pa.types.is_struct(encoded.type):
                yield encoded.to_pylist()
                continue
            images: list[Encoded] = pc.struct_field(encoded, "bytes").to_pylist()
            if encoded.type.get_field_index("path") >= 0 and None in images:
                paths = pc.struct_field(encoded, "path").to_pylist()
                images = [p if b is None else b for b, p in zip(images, paths, strict=True)]
            yield images


def _batch_rows(metadata: Any, column: str) -> int:
    """How many rows to read at once: some megabytes of images, not a row group of any size."""
    largest = 1
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        chunks = (group.column(k) for k in range(group.num_columns))
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema.split(".")[0] == column.split(".")[0]
        )
        largest = max(largest, size // max(1, group.num_rows))
    return int(min(BATCH, max(1, _BATCH_BYTES // largest)))


def _labels(file: Path, column: str) -> np.typing.NDArray[np.int64]:
    import pyarrow.parquet as pq

    with _reading(file):
        found = _plain(pq.read_table(file, columns=[column])[column])
    for i, label in enumerate(found.to_pylist()):
        if label is None or not 0 <= label < 2**63:
            what = "is missing" if label is None else f"is {label}"
            raise ConfigError(
                f"dataset.path: {file}, row {i}: {column} {what}; labels must be 0 or more, "
                "none missing"
            )
    labels: np.typing.NDArray[np.int64] = found.to_numpy().astype(np.int64)
    return labels


def _plain(column: Any) -> Any:
    """A column without what its values are wrapped into."""
    kind = _values(column.type)
    return column if kind == column.type else column.cast(kind)


def _values(kind: Any) -> Any:
    """The type of a column's values, whatever they are wrapped into."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_image(kind: Any, named: bool) -> bool:
    import pyarrow as pa

    kind = _values(kind)
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_image(kind.field(at).type, True)
    if pa.types.is_fixed_size_binary(kind):  # more often a hash
        return named
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view())


def _is_integer(kind: Any, named: bool) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(_values(kind)))


def _is_name(kind: Any, named: bool) -> bool:
    import pyarrow as pa

    strings = (pa.string(), pa.large_string(), pa.string_view())
    return _is_integer(kind, named) or _values(kind) in strings


def natural_ids(files: Sequence[Path], column: str) -> torch.Tensor:
    """The natural client of each row, numbered from 0 in the order of the names."""
    import pyarrow.parquet as pq

    read = []
    for file in files:
        columns, _ = _schema(file)
        _column(columns, column, _is_name, "id_column", "integers or strings", file)
        with _reading(file):
            found = _plain(pq.read_table(file, columns=[column])[column])
        if found.null_count:
            row = found.is_null().to_pylist().index(True)
            raise ConfigError(
                f"dataset.id_column: {file}, column {column}: some ids are missing (row {row})"
            )
        read.append(found.to_numpy())
    return numbered(np.concatenate(read))


def _column(
    columns: dict[str, Any],
    wanted: str | None,
    fits: Callable[[Any, bool], bool],
    key: str,
    holds: str,
    file: Path,
) -> str:
    """The column that is wanted, or the only one that fits."""
    described = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
    if wanted is not None:
        if wanted not in columns:
            raise ConfigError(f"dataset.{key}: {file} has no {wanted}; it has {described}")
        if not fits(columns[wanted], True):
            raise ConfigError(
                f"dataset.{key}: {file}, {wanted} must hold {holds}; it is {columns[wanted]}"
            )
        return wanted
    found = [name for name, kind in columns.items() if fits(kind, False)]
    if len(found) != 1:
        count = "no column" if not found else f"{len(found)} columns"
        raise ConfigError(
            f"dataset.{key}: {file} has {count} of {holds}, name one; it has {described}"
        )
    return found[0]
