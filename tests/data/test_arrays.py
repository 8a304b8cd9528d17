"""Arrays that NumPy has saved: how each is read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedwsa.config.component import ConfigError
from fedwsa.data.examples import LabelledData
from fedwsa.data.images import ImageData
from fedwsa.data.loading import open_source
from fedwsa.data.measurements import Measurements
from fedwsa.schema.compose import compose

RANDOM = np.random.default_rng(0)
Y = np.arange(20) % 4


def saved(folder: Path, **arrays: Any) -> Path:
    file = folder / "arrays.npz"
    np.savez(file, **arrays)
    return file


def opened(path: Path, *words: str, **supplied: Any) -> LabelledData:
    dataset = compose(["dataset=numpy", f"dataset.path={path}", *words]).dataset
    data = open_source(dataset, supplied).decode()
    data.require()
    return data


def in_both(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"x_train": x, "y_train": Y, "x_test": x[:4], "y_test": Y[:4]}


@pytest.mark.parametrize("kind", ["float64", "float32", "int16", "bool"])
def test_a_table_has_a_channel_for_each_column(kind: str, tmp_path: Path) -> None:
    x = RANDOM.integers(0, 2, (20, 3)).astype(kind)
    data = opened(saved(tmp_path, **in_both(x), ids_train=np.array(list("ba" * 10))))
    assert isinstance(data, Measurements)
    assert torch.equal(data.train.inputs, torch.from_numpy(x.astype(np.float32))[:, :, None])
    assert torch.equal(data.test.inputs, data.train.inputs[:4])
    assert data.train.labels.tolist() == Y.tolist()
    assert data.train.ids is not None
    assert data.train.ids.tolist() == [1, 0] * 10


def test_time_series_keep_channels_and_times_and_are_normalised_by_channel(tmp_path: Path) -> None:
    x = RANDOM.normal([[3.0], [-1.0]], [[2.0], [0.5]], (20, 2, 7))
    data = opened(saved(tmp_path, x=x, y=Y), "dataset.test=0.25")
    assert (data.kind, data.shape, data.classes) == ("measurements", (2, 7), 4)
    assert (len(data.train), len(data.test)) == (15, 5)
    prepared = data.prepare(data.train.inputs)
    torch.testing.assert_close(prepared.mean((0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(prepared.std((0, 2), correction=0), torch.ones(2))


@pytest.mark.parametrize("form", ["(N, H, W)", "(N, H, W, C)", "(N, C, H, W)"])
def test_images_in_each_form(form: str, tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (20, 1 if form == "(N, H, W)" else 3, 6, 5), dtype=np.uint8)
    x = {
        "(N, H, W)": pixels[:, 0],
        "(N, H, W, C)": pixels.transpose(0, 2, 3, 1),
        "(N, C, H, W)": pixels,
    }[form]
    data = opened(saved(tmp_path, **in_both(x)))
    assert isinstance(data, ImageData)
    assert torch.equal(data.train.inputs, torch.from_numpy(pixels))


def test_a_folder_of_arrays_is_as_one_file(tmp_path: Path) -> None:
    arrays = in_both(RANDOM.normal(size=(20, 3)))
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "notes.npy", np.arange(3))
    data, other = opened(tmp_path), opened(saved(tmp_path, **arrays))
    assert torch.equal(data.train.inputs, other.train.inputs)


def test_a_node_s_own_are_all_for_training(tmp_path: Path) -> None:
    data = opened(saved(tmp_path, x=RANDOM.normal(size=(20, 3)), y=Y), classes=())
    assert (len(data.train), len(data.test)) == (20, 0)


X = np.ones((20, 3))
WITH_A_GAP = np.where(np.arange(60).reshape(20, 3) == 7, np.nan, 1.0)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, r"there is no x_train, nor x and y; there is x; arrays are called x_train, y_"),
        ({"a": X}, r"there is none of the arrays"),
        ({"x": X, "y": Y, "x_train": X}, r"there is x_train beside x, y and ids; keep either"),
        ({"x": X, "y": Y, "y_test": Y}, r"there is y_test beside x, y and ids; keep either"),
        (
            {**in_both(X), "ids": Y},
            r"there is ids beside x_train, y_train, x_test, y_test and ids_t",
        ),
        ({**in_both(X), "x_test": X[:4, :2]}, r"x_train has examples \(3, 1\), x_test \(2, 1\)"),
        ({"x": X, "y": Y, "ids": X}, r"ids must name a client for each example, shape \(N,\)"),
        ({"x": X, "y": Y * 0}, r"all labels are 0: there is nothing to tell apart"),
        ({"x": X[:, :0], "y": Y}, r"x has shape \(20, 0\): there is nothing in it"),
        (
            {"x": np.zeros((20, 8, 8, 4), np.uint8), "y": Y},
            r"shape \(20, 8, 8, 4\); images have 1",
        ),
        (
            {"x": X * 1e25 + RANDOM.normal(size=(20, 3)) * 1e17, "y": Y},
            r"column 0, differs by so li",
        ),
        ({"x": X, "y": Y[:3]}, r"y has shape \(3,\), x \(20, 3\); an entry for each example"),
        ({"x": X, "y": Y, "ids": Y[:3]}, r"ids has shape \(3,\), x \(20, 3\)"),
        ({"x": X, "y": Y * 0.5}, r"y must hold integers of shape \(N,\); it is float64 of shape"),
        ({"x": X, "y": Y - 1}, r"y must not be negative; there is -1"),
        ({"x": X, "y": Y + 40}, r"labels run up to 43, with only 16 training examples"),
        ({"x": WITH_A_GAP, "y": Y}, r"x has nan at \(2, 1\): missing, or no number of 32 bits"),
        ({"x": X[:, :, None, None], "y": Y}, r"x is float64 of shape \(20, 3, 1, 1\); it must be"),
        ({"x": X.astype(str), "y": Y}, r"x is <U32 of shape \(20, 3\); it must be images"),
        ({"x": X.astype(object), "y": Y}, r"holds no arrays to read: Object arrays cannot be loa"),
        ({"x": X[:0], "y": Y[:0]}, r"x has shape \(0, 3\)"),
    ],
)
def test_arrays_that_cannot_be_are_refused_in_one_line(
    arrays: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        opened(saved(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_arrays(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*/x.npz"):
        opened(tmp_path / "x.npz")
    with pytest.raises(ConfigError, match=r"there is no file .*/x_train.npy or /x.npy; arrays are"):
        opened(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ConfigError, match=r"x.npz holds no arrays to read: "):
        opened(tmp_path / "x.npz")
