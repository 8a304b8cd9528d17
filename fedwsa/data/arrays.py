"""Arrays that NumPy has saved: images, tables or time series, with a label for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.data.cache import place
from fedwsa.data.examples import Examples, LabelledData, count_classes, numbered
from fedwsa.data.images import ImageData
from fedwsa.data.keys import digest, of_files
from fedwsa.data.loading import Source
from fedwsa.data.measurements import Measurements, single
from fedwsa.data.splits import TestShare, in_two

_NAMES = ("x_train", "y_train", "ids_train", "x_test", "y_test", "x", "y", "ids")


def numpy(*, path: str, test: TestShare, classes: tuple[str, ...] | None = None) -> Source:
    """Arrays in a ``.npz`` file, or in a folder with a ``.npy`` file for each.

    They are called ``x_train``, ``y_train``, ``x_test`` and ``y_test``; or ``x`` and ``y``, of
    which a share is for the test. ``ids_train`` or ``ids`` says, if it is there, which natural
    client each example comes from, in integers or words.

    Inputs are images, uint8, ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` with C of 1 or 3;
    a table ``(N, F)``; or time series ``(N, C, T)``, C channels at T times, in any numbers.
    Labels are integers ``(N,)`` from 0.

    Parameters
    ----------
    path
        The file or the folder.
    test
        Share of ``x`` and ``y`` that is the test set, of each natural client's or, where there is
        none, of each class's.
    classes
        Names of all classes, as many as there are labels; the arrays are then a node's own, and
        all of them are for training.
    """
    found = place(path)
    files = sorted(found.glob("*.npy")) if found.is_dir() else [found]
    files = [file for file in files if file == found or file.stem in _NAMES]
    if not files or not files[0].is_file():
        called = f"/x_train.npy or /x.npy; arrays are called {', '.join(_NAMES)}"
        there = called if found.is_dir() else ""
        raise ConfigError(f"dataset.path: there is no file {found}{there}")

    def decode() -> LabelledData:
        return _data(_read(files), test, classes is not None)

    key = digest(test, classes, [file.stem for file in files], of_files(files))
    return Source(f"numpy-{key[:24]}", decode, tuple(classes or ()))


def _read(files: list[Path]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for file in files:
        try:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                arrays[file.stem] = loaded
            else:
                with loaded:
                    arrays.update({name: loaded[name] for name in loaded.files if name in _NAMES})
        except Exception as error:  # damaged files make zipfile and NumPy raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"dataset.path: {file} holds no arrays to read: {reason}") from None
    return arrays


def _data(arrays: Mapping[str, NDArray[Any]], test: float, own: bool) -> LabelledData:
    whole = {"x", "y"} <= arrays.keys()
    wanted = ("x_train", "y_train") if own else ("x_train", "y_train", "x_test", "y_test")
    if not whole and (missing := [name for name in wanted if name not in arrays]):
        there = ", ".join(sorted(arrays)) or "none of the arrays"
        raise ConfigError(
            f"dataset.path: there is no {missing[0]}, nor x and y; there is {there}; arrays are "
            f"called {', '.join(_NAMES)}"
        )
    read = {"x", "y", "ids"} if whole else {*wanted, "ids_train"}
    if unread := sorted(arrays.keys() - read - ({"x_test", "y_test"} if own else set())):
        others = "x, y and ids" if whole else "x_train, y_train, x_test, y_test and ids_train"
        raise ConfigError(f"dataset.path: there is {unread[0]} beside {others}; keep either")
    train = _examples(arrays, "" if whole else "_train")
    if own:
        rest = train[torch.arange(0)]
    elif whole:
        train, rest = in_two(train, test)
    else:
        rest = _examples(arrays, "_test")
    if train.inputs.shape[1:] != rest.inputs.shape[1:]:
        shapes = [tuple(part.inputs.shape[1:]) for part in (train, rest)]
        raise ConfigError(f"dataset.path: x_train has examples {shapes[0]}, x_test {shapes[1]}")
    if own and train.inputs.dtype == torch.uint8:
        return ImageData.own(train)
    classes = int(train.labels.max()) + 1 if own else count_classes(train.labels, rest.labels)
    if classes < 2 and not own:
        raise ConfigError("dataset.path: all labels are 0: there is nothing to tell apart")
    if train.inputs.dtype == torch.uint8:
        return ImageData.of(train, rest)
    return Measurements.of(train, rest, classes)


def _examples(arrays: Mapping[str, NDArray[Any]], suffix: str) -> Examples:
    x, y, ids = (arrays.get(f"{name}{suffix}") for name in ("x", "y", "ids"))
    assert x is not None
    assert y is not None
    for name, array in {f"x{suffix}": x, f"y{suffix}": y, f"ids{suffix}": ids}.items():
        if array is not None and (not array.ndim or len(array) != len(x) or not len(x)):
            raise ConfigError(
                f"dataset.path: {name} has shape {array.shape}, x{suffix} {x.shape}; an entry for "
                "each example, one at least"
            )
    if ids is not None and (ids.ndim != 1 or (ids.dtype.kind == "f" and np.isnan(ids).any())):
        raise ConfigError(
            f"dataset.path: ids{suffix} must name a client for each example, shape (N,), none "
            f"missing; it is {ids.dtype} of shape {ids.shape}"
        )
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ConfigError(
            f"dataset.path: y{suffix} must hold integers of shape (N,); it is {y.dtype} of shape "
            f"{y.shape}"
        )
    if int(y.min()) < 0:
        raise ConfigError(f"dataset.path: y{suffix} must not be negative; there is {int(y.min())}")
    return Examples(
        _inputs(x, f"x{suffix}"),
        torch.from_numpy(y.astype(np.int64)),
        None if ids is None else numbered(ids),
    )


def _inputs(x: NDArray[Any], name: str) -> Tensor:
    """Images as uint8 ``(N, C, H, W)``, other numbers as float32 ``(N, C, T)``."""
    if not x.size:
        raise ConfigError(f"dataset.path: {name} has shape {x.shape}: there is nothing in it")
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        if x.ndim == 3:
            x = x[:, None]
        elif x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
            x = x.transpose(0, 3, 1, 2)
        if x.shape[1] not in (1, 3):
            raise ConfigError(
                f"dataset.path: {name} has shape {x.shape}; images have 1 or 3 channels"
            )
        return torch.from_numpy(np.ascontiguousarray(x))
    if x.dtype.kind not in "fiub" or x.ndim not in (2, 3):
        raise ConfigError(
            f"dataset.path: {name} is {x.dtype} of shape {x.shape}; it must be images, uint8 of 3 "
            "or 4 dimensions, a table of 2, or time series of 3"
        )
    series = x[:, :, None] if x.ndim == 2 else x
    channels = []
    for c in range(series.shape[1]):

        def called(at: tuple[int, ...], c: int = c) -> str:
            whole = (at[0], c, *at[1:])[: x.ndim]
            return f"{name} has {x[whole]} at {whole}"

        channels.append(single(series[:, c], called, f"{name}, column {c},"))
    return torch.stack(channels, dim=1)
