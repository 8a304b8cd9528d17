"""Where images come from. Each function returns a :class:`fedwsa.data.loading.Source`."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from fedwsa.components import ConfigError
from fedwsa.data.cache import place
from fedwsa.data.examples import Examples
from fedwsa.data.images import ImageData
from fedwsa.data.loading import Source


def digits() -> Source:
    """1797 handwritten digits of 8x8 pixels from scikit-learn, a fifth of them for the test."""

    def decode() -> ImageData:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        bunch = load_digits()
        pixels = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8))[:, None]
        labels = torch.from_numpy(bunch.target.astype(np.int64))
        train, test = train_test_split(
            np.arange(len(labels)), test_size=0.2, random_state=0, stratify=bunch.target
        )
        return ImageData.of(
            Examples(pixels[train].contiguous(), labels[train]),
            Examples(pixels[test].contiguous(), labels[test]),
        )

    return Source("digits", decode)


_TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}


def from_torchvision(
    *, name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"], root: str
) -> Source:
    """A data set that torchvision downloads to ``root``, or finds there."""

    def decode() -> ImageData:
        folder = place(root)
        train, test = (_torchvision_part(name, folder, which) for which in (True, False))
        return ImageData.of(train, test)

    return Source(name, decode)


def _torchvision_part(name: str, root: Path, train: bool) -> Examples:
    from fedwsa.torchvision_loader import torchvision

    kind = getattr(torchvision.datasets, _TORCHVISION[name])
    which = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
    try:
        found = kind(root, **which, download=True)
    except (OSError, RuntimeError) as error:
        # urllib's errors are OSErrors; torchvision raises RuntimeError for what it cannot load.
        wanted = _looked_for(kind, name, root)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"dataset={name}: could not be downloaded ({reason}); offline, put {wanted}"
        ) from None
    pixels = torch.as_tensor(found.data)
    if pixels.dim() == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    labels = found.labels if name == "svhn" else found.targets
    return Examples(pixels.contiguous(), torch.as_tensor(labels, dtype=torch.int64))


def _looked_for(kind: Any, name: str, root: Path) -> str:
    """Which files torchvision wants in which folder."""
    if hasattr(kind, "resources"):
        return f"{kind.resources[0][0]} and its kin into {root / kind.__name__ / 'raw'}"
    if name == "svhn":
        return f"train_32x32.mat and test_32x32.mat into {root}"
    return f"{kind.filename} into {root}"


def parquet(
    *,
    path: str,
    image_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    classes: tuple[str, ...] | None = None,
) -> Source:
    """``train.parquet`` and ``test.parquet`` in a folder, in the Hugging Face layout.

    An image column holds encoded files (JPEG, PNG, …) as binary or as a struct with ``bytes``;
    a label column holds integers from 0. Columns that are not named are found by their type.
    An id column, of integers or strings, names the natural client of each training image.
    With ``classes`` the folder is a node's own: its training part is all there is.
    """
    parts = ("train", "test") if classes is None else ("train",)
    files = [place(path) / f"{part}.parquet" for part in parts]
    for file in files:
        if not file.is_file():
            raise ConfigError(f"dataset.path: there is no file {file}")
    digest = hashlib.sha256(repr((image_column, label_column, id_column)).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())

    def decode() -> ImageData:
        read = [_parquet_part(f, image_column, label_column, id_column) for f in files]
        if len(read) == 1:
            return ImageData.own(read[0])
        train, test = read
        _require_one_shape(train, test, files)
        if id_column is not None:
            train = replace(train, ids=_natural_ids(files[0], id_column))
        return ImageData.of(train, test)

    return Source(f"parquet-{digest.hexdigest()[:24]}", decode)


def _parquet_part(
    file: Path, image_column: str | None, label_column: str | None, id_column: str | None
) -> Examples:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"dataset.path: {file} is not a readable parquet file: {reason}"
        ) from None

    def is_image(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    columns = {field.name: field.type for field in table.schema if field.name != id_column}
    image = _column(columns, image_column, is_image, "image_column", "encoded images", file)
    label = _column(columns, label_column, _is_integer, "label_column", "integers", file)
    if table.num_rows == 0:
        raise ConfigError(f"dataset.path: {file} has no rows")
    encoded = table[image].combine_chunks()
    if pa.types.is_struct(encoded.type):
        encoded = encoded.field("bytes")
    labels = table[label].to_numpy()
    if table[label].null_count or labels.min() < 0:
        raise ConfigError(
            f"dataset.path: {file}, column {label}: labels must be 0 or more, none missing"
        )
    names = [f"{file}, row {i}" for i in range(table.num_rows)]
    blobs: Sequence[bytes | None] = encoded.to_pylist()
    pixels = decode_images(blobs, names, f"Decoding {file.name}")
    return Examples(pixels, torch.from_numpy(labels.astype(np.int64)))


def _is_integer(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def _natural_ids(file: Path, column: str) -> torch.Tensor:
    """The natural client of each row, numbered from 0 in the order of the names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def names(kind: Any) -> bool:
        return bool(
            pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        )

    columns = {field.name: field.type for field in pq.read_schema(file)}
    _column(columns, column, names, "id_column", "integers or strings", file)
    found = pq.read_table(file, columns=[column])[column]
    if found.null_count:
        raise ConfigError(f"dataset.id_column: {file}, column {column}: some ids are missing")
    return torch.from_numpy(np.unique(found.to_numpy(), return_inverse=True)[1].astype(np.int64))


def _column(
    columns: dict[str, Any],
    wanted: str | None,
    fits: Callable[[Any], bool],
    key: str,
    holds: str,
    file: Path,
) -> str:
    """The column that is wanted, or the only one that fits."""
    described = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
    if wanted is not None:
        if wanted not in columns:
            raise ConfigError(f"dataset.{key}: {file} has no {wanted}; it has {described}")
        if not fits(columns[wanted]):
            raise ConfigError(f"dataset.{key}: {wanted} must hold {holds}; it is {columns[wanted]}")
        return wanted
    found = [name for name, kind in columns.items() if fits(kind)]
    if len(found) != 1:
        count = "no column" if not found else f"{len(found)} columns"
        raise ConfigError(
            f"dataset.{key}: {file} has {count} of {holds}, name one; it has {described}"
        )
    return found[0]


def image_folder(*, path: str, classes: tuple[str, ...] | None = None) -> Source:
    """``train/CLASS/*`` and ``test/CLASS/*``: a folder of image files for each class.

    With ``classes``, the names of all of them, the folder is a node's own: its training part is
    all there is, and some classes may be missing.
    """
    root = place(path)
    parts = [root / "train", root / "test"][: 2 if classes is None else 1]
    listed: list[list[tuple[Path, str]]] = []
    for part in parts:
        files = sorted(f for f in part.glob("*/*") if f.is_file() and not f.name.startswith("."))
        if not files:
            raise ConfigError(f"dataset.path: there are no image files in {part}/CLASS/")
        listed.append([(f, f.parent.name) for f in files])
    found = sorted({name for _, name in listed[0]})
    names = list(classes or found)
    if unknown := sorted({name for _, name in listed[-1]} - set(names)):
        whose = "train lacks" if classes is None else "the server's data lack"
        raise ConfigError(f"dataset.path: {parts[-1]} has classes that {whose}: {unknown}")
    digest = hashlib.sha256()
    for files_of in listed:
        for file, _ in files_of:
            stat = file.stat()
            digest.update(repr((str(file), stat.st_size, stat.st_mtime_ns)).encode())

    def decode() -> ImageData:
        read = [
            Examples(
                decode_images(
                    [f.read_bytes() for f, _ in files], [str(f) for f, _ in files], "Decoding"
                ),
                torch.tensor([names.index(name) for _, name in files]),
            )
            for files in listed
        ]
        if len(read) == 1:
            return ImageData.own(read[0])
        train, test = read
        _require_one_shape(train, test, parts)
        return ImageData.of(train, test)

    return Source(f"folder-{digest.hexdigest()[:24]}", decode, tuple(names))


def decode_images(
    blobs: Sequence[bytes | None], names: Sequence[str], description: str
) -> torch.Tensor:
    """Decode image files of one size to uint8, shape ``(N, C, H, W)``; C is 1 if all are grey.

    Raises
    ------
    ConfigError
        Names the first image that cannot be read, has another size or more than 8 bits.
    """

    def decode(blob: bytes | None) -> Image.Image | None:
        try:
            image = Image.open(io.BytesIO(blob or b""))
            image.load()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            return None
        return image

    first = decode(blobs[0])
    if first is None:
        raise ConfigError(f"dataset.path: {names[0]} is not a readable image")
    pixels = np.empty((len(blobs), first.height, first.width, 1), dtype=np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = pool.map(decode, blobs)
        progress = track(images, description, total=len(blobs), transient=True)
        for i, image in enumerate(progress):
            if image is None:
                raise ConfigError(f"dataset.path: {names[i]} is not a readable image")
            if image.size != first.size:
                raise ConfigError(
                    f"dataset.path: images of mixed sizes: {names[i]} is "
                    f"{image.width}x{image.height}, {names[0]} {first.width}x{first.height}"
                )
            if image.mode.startswith(("I", "F")):
                raise ConfigError(
                    f"dataset.path: {names[i]} has more than 8 bits a channel (mode {image.mode})"
                )
            grey = image.mode in ("1", "L")
            if not grey and pixels.shape[-1] == 1:  # the first in colour: all become colour
                pixels = np.repeat(pixels, 3, axis=-1)
            pixels[i] = np.atleast_3d(np.asarray(image.convert("L" if grey else "RGB")))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _require_one_shape(train: Examples, test: Examples, names: Sequence[Path]) -> None:
    shapes = [tuple(part.inputs.shape[1:]) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"dataset.path: images of mixed sizes (channels, height, width): {names[0]} has "
            f"{shapes[0]}, {names[1]} {shapes[1]}"
        )
