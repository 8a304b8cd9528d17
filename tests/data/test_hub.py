"""Data sets in the layouts of the Hugging Face Hub, from a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fedwsa.config.component import ConfigError
from fedwsa.data import hub
from fedwsa.data.examples import LabelledData
from fedwsa.data.images import ImageData
from fedwsa.data.loading import open_source
from fedwsa.data.measurements import Measurements
from fedwsa.schema.compose import compose

RANDOM = np.random.default_rng(0)
IMAGE, WORD, WHOLE = datasets.Image(), datasets.Value("string"), datasets.Value("int64")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def pictures(count: int, *shape: int) -> list[np.ndarray]:
    return list(RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8))


def written(folder: Path, features: dict[str, Any], **splits: dict[str, list[Any]]) -> Path:
    """A folder of ``data/SPLIT-00000-of-00001.parquet``, as the Hub has it."""
    (folder / "data").mkdir(parents=True)
    for split, columns in splits.items():
        made = {
            name: [Image.fromarray(v) if isinstance(v, np.ndarray) else v for v in values]
            for name, values in columns.items()
        }
        table = datasets.Dataset.from_dict(made, features=datasets.Features(features))
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def opened(option: str, folder: Path, *words: str) -> LabelledData:
    dataset = compose([f"dataset={option}", f"dataset.name={folder}", *words]).dataset
    data = open_source(dataset).decode()
    data.require()
    return data


def test_femnist_has_a_client_for_each_writer_and_a_tenth_of_each_for_the_test(tmp_path) -> None:
    names = [str(i) for i in range(62)]
    images, letters = pictures(120, 28, 28), list(range(60)) * 2
    columns = {
        "image": images,
        "writer_id": ["f0001_02", "f0000_14", "f0002_01"] * 40,
        "hsf_id": [0] * 120,
        "character": letters,
    }
    kinds = {
        "image": IMAGE,
        "writer_id": WORD,
        "hsf_id": WHOLE,
        "character": datasets.ClassLabel(names=names),
    }
    data = opened("femnist", written(tmp_path / "femnist", kinds, train=columns))
    assert isinstance(data, ImageData)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((1, 28, 28), 60, 108, 12)
    assert data.train.ids is not None
    assert torch.bincount(data.train.ids).tolist() == [36] * 3
    # Every training image is one of its writer's, with its letter.
    of = {image.tobytes(): (i % 3, letters[i]) for i, image in enumerate(images)}
    order = {0: 1, 1: 0, 2: 2}  # writers in the order of their names
    for pixels, label, writer in zip(
        data.train.inputs, data.train.labels, data.train.ids, strict=True
    ):
        place, letter = of[pixels[0].numpy().tobytes()]
        assert (order[place], letter) == (int(writer), int(label))


def test_celeba_has_smiles_for_labels_and_its_own_test_of_other_faces(tmp_path) -> None:
    kinds = {"image": IMAGE, "celeb_id": WHOLE}
    kinds |= {n: datasets.Value("bool") for n in ("Bald", "Smiling")}

    def faces(first: int, count: int) -> dict[str, list[Any]]:
        return {
            "image": pictures(count, 218, 178, 3),
            "celeb_id": [first + i // 2 for i in range(count)],
            "Bald": [True] * count,
            "Smiling": [bool(i % 3) for i in range(count)],
        }

    train, test = faces(40, 8), faces(70, 4)
    folder = written(tmp_path / "celeba", kinds, train=train, valid=faces(90, 2), test=test)
    data = opened("celeba", folder)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((3, 84, 84), 2, 8, 4)
    assert data.train.labels.tolist() == [0, 1, 1, 0, 1, 1, 0, 1]
    assert data.train.ids is not None
    assert data.train.ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    middle = train["image"][0][20:198].mean((0, 1))  # CenterCrop to 178 x 178, then smaller
    seen = data.train.inputs[0].double().mean((1, 2)).numpy()
    np.testing.assert_allclose(seen, middle, atol=1.0)


@pytest.mark.parametrize(("option", "classes"), [("pacs", 7), ("office_home", 65)])
def test_styles_are_clients_and_pictures_of_any_size_come_into_one(
    option: str, classes: int, tmp_path
) -> None:
    kinds = {
        "image": IMAGE,
        "domain": WORD,
        "label": datasets.ClassLabel(num_classes=classes),
    }
    count = 2 * classes
    columns = {
        "image": [pictures(1, 20 + i % 3, 30, 3)[0] for i in range(count)],
        "domain": [("art", "photo")[i % 2] for i in range(count)],
        "label": [i % classes for i in range(count)],
    }
    data = opened(option, written(tmp_path / option, kinds, train=columns))
    assert (data.shape, data.classes) == ((3, 64, 64), classes)
    assert data.train.ids is not None
    assert int(data.train.ids.max()) == 1


def test_it_is_what_parquet_files_of_images_are(tmp_path) -> None:
    kinds = {"img": IMAGE, "label": datasets.ClassLabel(num_classes=3)}
    columns = {"img": pictures(9, 6, 5, 3), "label": [0, 1, 2] * 3}
    folder = written(tmp_path / "both", kinds, train=columns, test=columns)
    data = opened("hub", folder)
    for part in ("train", "test"):
        os.rename(folder / "data" / f"{part}-00000-of-00001.parquet", tmp_path / f"{part}.parquet")
    dataset = compose(["dataset=parquet", f"dataset.path={tmp_path}"]).dataset
    other = open_source(dataset).decode()
    assert torch.equal(data.train.inputs, other.train.inputs)
    assert torch.equal(data.test.labels, other.test.labels)
    assert data.facts() == other.facts()


@pytest.mark.parametrize(
    ("train", "test", "numbers"),
    [(["a", "b", "c"], ["c", "b", "c"], [2, 1, 2]), ([True, False, True], [True] * 3, [1] * 3)],
)
def test_words_have_the_numbers_of_the_training_split(train, test, numbers, tmp_path) -> None:
    kinds = {"image": IMAGE, "kind": WORD if "a" in train else datasets.Value("bool")}
    splits = {
        name: {"image": pictures(3, 6, 5), "kind": words}
        for name, words in (("train", train), ("test", test))
    }
    folder = written(tmp_path / "words", kinds, **splits)
    data = opened("hub", folder, "dataset.label_column=kind")
    assert data.test.labels.tolist() == numbers
    if "a" in train:
        splits["test"]["kind"][1] = "d"
        other = written(tmp_path / "other", kinds, **splits)
        with pytest.raises(ConfigError, match=r"row 1: kind is d, which is no class of the trai"):
            opened("hub", other, "dataset.label_column=kind")


def test_a_folder_of_image_files(tmp_path) -> None:
    for i, pixels in enumerate(pictures(12, 6, 5, 3)):
        file = tmp_path / "pets" / "train" / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    data = opened("hub", tmp_path / "pets", "dataset.test=0.25")
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((3, 6, 5), 2, 9, 3)


def test_a_table_s_label_is_what_is_called_so_and_not_what_holds_integers(tmp_path) -> None:
    (tmp_path / "t").mkdir()
    rows = "".join(f"{i % 7},{i * 0.5},{i % 2}.0\n" for i in range(40))
    (tmp_path / "t" / "train.csv").write_text(f"age,b,label\n{rows}")
    data = opened("hub", tmp_path / "t", "dataset.test=0.2")
    assert isinstance(data, Measurements)
    assert (data.names, list(data.channels)) == (("0", "1"), ["age", "b"])


def test_without_images_it_is_a_table(tmp_path) -> None:
    (tmp_path / "t").mkdir()
    rows = "".join(f"{i},{i * i},{'xy'[i % 2]},s{i % 4}\n" for i in range(20))
    (tmp_path / "t" / "train.csv").write_text(f"a,b,kind,site\n{rows}")
    words = ["dataset.test=0.2", "dataset.label_column=kind", "dataset.id_column=site"]
    data = opened("hub", tmp_path / "t", *words)
    assert isinstance(data, Measurements)
    assert (data.names, list(data.channels), len(data.test)) == (("x", "y"), ["a", "b"], 4)
    assert torch.equal(data.train.inputs[:, 0] ** 2, data.train.inputs[:, 1])
    assert torch.equal(data.train.inputs[:, 0, 0] % 2, data.train.labels.float())
    assert torch.equal(data.train.inputs[:, 0, 0] % 4, data.train.ids.float())


@pytest.fixture
def ambiguous(tmp_path: Path) -> Path:
    kinds = {
        "image": IMAGE,
        "mask": IMAGE,
        "a": WHOLE,
        "b": WHOLE,
        "score": datasets.Value("float32"),
    }
    columns: dict[str, list[Any]] = {n: pictures(4, 6, 5) for n in ("image", "mask")}
    columns |= {"a": [0, 1, 0, 1], "b": [0, -1, None, 1], "score": [0.5] * 4}
    return written(tmp_path / "odd", kinds, train=columns)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), r"image_column: there are 2 columns of images, name one: image, mask"),
        (("image_column=a",), r"image_column: a holds no images; it has image \(Image\), mask \(I"),
        (("image_column=c",), r"image_column: there is no c; it has image \(Image\)"),
        (("image_column=image",), r"label_column: there is 2 columns of classes, name one; it has"),
        (("image_column=image", "label_column=score"), r"score holds no classes; it has"),
        (("image_column=image", "label_column=c"), r"label_column: there is no c; it has"),
        (("image_column=image", "label_column=b"), r"\[train\], row 2: b is missing"),
        (("image_column=image", "label_column=a", "id_column=c"), r"id_column: there is no c"),
        (("train=trian",), r'Unknown split "trian"'),
        (("config=small",), r"BuilderConfig 'small' not found"),
        (("image_column=image", "label_column=a", "transform=[{Rezise: 4}]"), r"is it Resize\?"),
        (
            ("image_column=image", "label_column=a", "transform=[{Resize: [1, 2, 3]}]"),
            r"transform: Resize: ",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: tuple[str, ...], said: str, ambiguous: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        opened("hub", ambiguous, "dataset.test=0.5", *(f"dataset.{word}" for word in words))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("dataset.")


def test_without_the_package_or_files(tmp_path, monkeypatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"dataset.name: there are no files in .*/empty"):
        opened("hub", tmp_path / "empty")
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs the package datasets: pip install 'fedwsa\[hub\]"
    ):
        opened("hub", tmp_path / "empty")


def test_what_is_neither_here_nor_to_be_had(monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"name: some/thing is neither a folder nor in the cache"):
        opened("hub", Path("some/thing"))
