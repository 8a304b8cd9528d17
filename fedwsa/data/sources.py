"""Where images come from. Each function returns a :class:`fedwsa.data.loading.Source`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from fedwsa.config.component import ConfigError
from fedwsa.data.cache import place
from fedwsa.data.decoding import BATCH, Background, Transform, decode_images, in_one_shape
from fedwsa.data.examples import Examples
from fedwsa.data.images import ImageData
from fedwsa.data.keys import digest, of_files
from fedwsa.data.loading import Source
from fedwsa.data.parquet import natural_ids, part_files, read_part, require_one_numbering
from fedwsa.data.transforms import Transforms, transform_of

# scikit-learn and torchvision are imported where their data are read, for seconds.


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
    "mnist": ("MNIST", "MNIST/raw/*-ubyte", 4),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw/*-ubyte", 4),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/*batch*", 7),
    "cifar100": ("CIFAR100", "cifar-100-python/*[nta]", 3),
    "svhn": ("SVHN", "t*_32x32.mat", 2),
}
"""Name → torchvision's class, and which files it reads, how many."""


def from_torchvision(
    *, name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"], root: str
) -> Source:
    """A data set that torchvision finds in ``root``, or downloads to it."""
    folder = place(root)

    def decode() -> ImageData:
        return ImageData.of(*(_torchvision_part(name, folder, train) for train in (True, False)))

    _, pattern, count = _TORCHVISION[name]
    if len(list(folder.glob(pattern))) < count:
        with suppress(ConfigError):  # decode says why it cannot be
            decode()  # downloads it
    files = sorted(folder.glob(pattern))
    if len(files) < count:
        return Source(name, decode, made_of=None)
    key = digest([file.name for file in files], of_files(files))
    return Source(f"{name}-{key[:24]}", decode)


def _torchvision_part(name: str, root: Path, train: bool) -> Examples:
    from fedwsa.models.torchvision_loader import torchvision

    kind = getattr(torchvision.datasets, _TORCHVISION[name][0])
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
    background: Background = "white",
    transform: Transforms | None = None,
    classes: tuple[str, ...] | None = None,
) -> Source:
    """``train.parquet`` and ``test.parquet`` in a folder, in the Hugging Face layout.

    Instead of one file a part may have shards, ``train-00000-of-00002.parquet`` and so on. An
    image column holds encoded files (JPEG, PNG, …) as binary or as a struct with ``bytes``;
    a label column holds integers from 0. Columns that are not named are found by their type.
    An id column, of integers or strings, names the natural client of each training image.
    ``background`` shows through where images are transparent; ``transform`` is done to each
    (:func:`fedwsa.data.transforms.transform_of`).
    With ``classes`` the folder is a node's own: its training part is all there is.
    """
    names = ("train", "test") if classes is None else ("train",)
    parts = [part_files(place(path), name) for name in names]
    content = of_files([file for files in parts for file in files])
    counts = [len(files) for files in parts]
    asked = (image_column, label_column, id_column, background, transform, counts)

    def decode() -> ImageData:
        wanted = {"image": image_column, "label": label_column, "id": id_column}
        require_one_numbering([file for files in parts for file in files], wanted)
        change = transform_of(transform)
        read = [read_part(files, wanted, background, change) for files in parts]
        if len(read) == 1:
            return ImageData.own(read[0])
        train, test = in_one_shape(read[0], read[1], [files[0] for files in parts])
        if id_column is not None:
            train = replace(train, ids=natural_ids(parts[0], id_column))
        return ImageData.of(train, test)

    return Source(f"parquet-{digest(asked, content)[:24]}", decode)


def image_folder(
    *,
    path: str,
    background: Background = "white",
    transform: Transforms | None = None,
    classes: tuple[str, ...] | None = None,
) -> Source:
    """``train/CLASS/*`` and ``test/CLASS/*``: a folder of image files for each class.

    ``background`` shows through where images are transparent; ``transform`` is done to each
    (:func:`fedwsa.data.transforms.transform_of`).
    With ``classes``, the names of all of them, the folder is a node's own: its training part is
    all there is, and some classes may be missing.
    """
    root = place(path)
    parts = [root / "train", root / "test"][: 2 if classes is None else 1]
    listed = [_images_in(part) for part in parts]
    found = sorted({file.parent.name for file in listed[0]})
    names = list(classes or found)
    if unknown := sorted({file.parent.name for file in listed[-1]} - set(names)):
        whose = "train lacks" if classes is None else "the server's data lack"
        raise ConfigError(f"dataset.path: {parts[-1]} has classes that {whose}: {unknown}")
    relative = [[str(file.relative_to(root)) for file in files] for files in listed]
    content = of_files([file for files in listed for file in files])

    def decode() -> ImageData:
        change = transform_of(transform)
        read = [_read_files(files, names, background, change) for files in listed]
        if len(read) == 1:
            return ImageData.own(read[0])
        return ImageData.of(*in_one_shape(read[0], read[1], parts))

    key = digest(relative, names, background, transform, content)
    return Source(f"folder-{key[:24]}", decode, tuple(names))


def _images_in(part: Path) -> list[Path]:
    """The files of all classes; what lies elsewhere is refused, what is hidden passed over."""
    images = Image.registered_extensions()
    found = [f for f in sorted(part.glob("[!.]*/*")) if not f.name.startswith(".")]
    files = [file for file in found if file.is_file()]
    if not files:
        raise ConfigError(f"dataset.path: there are no image files in {part}/CLASS/")
    if deeper := next((f for f in found if f.is_dir() and any(f.iterdir())), None):
        raise ConfigError(f"dataset.path: {deeper} is a folder; images lie in {part}/CLASS/ itself")
    if beside := next(
        (f for f in sorted(part.glob("[!.]*.*")) if f.suffix.lower() in images), None
    ):
        raise ConfigError(f"dataset.path: {beside} is in no class; images lie in {part}/CLASS/")
    return files


def _read_files(
    files: Sequence[Path], names: Sequence[str], background: Background, change: Transform | None
) -> Examples:
    batches = (files[i : i + BATCH] for i in range(0, len(files), BATCH))
    what = f"Decoding {files[0].parent.parent.name}"
    pixels = decode_images(batches, len(files), lambda i: str(files[i]), what, background, change)
    return Examples(pixels, torch.tensor([names.index(file.parent.name) for file in files]))
