"""Images: sources, the cache of decoded pixels, augmentation: real files of every kind."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fedwsa.config.component import ConfigError
from fedwsa.data import sources
from fedwsa.data.cache import fetch, store
from fedwsa.data.examples import LabelledData
from fedwsa.data.images import channel_statistics, crop_flip, normalise
from fedwsa.data.loading import Source, load
from tests.given.images import huggingface, png, write_parquet

# --- sources -------------------------------------------------------------------------------


def test_digits_are_the_whole_set_split_once() -> None:
    data = sources.digits().decode()
    train, test = data.train, data.test
    assert (len(train), len(test)) == (1437, 360)
    assert train.inputs.shape == (1437, 1, 8, 8)
    assert train.inputs.dtype == torch.uint8
    assert int(train.inputs.max()) == 255
    assert torch.bincount(test.labels).min() >= 34  # stratified: about 36 of each class


def test_parquet_returns_the_images_to_the_bit(tmp_path: Path) -> None:
    blobs = [png(seed=i) for i in range(4)]
    folder = huggingface(tmp_path / "d", blobs, [2, 0, 1, 2])
    data = load(sources.parquet(path=str(folder)), tmp_path / "cache")
    assert data.shape == (3, 5, 6)
    assert data.classes == 3
    assert data.train.labels.tolist() == [2, 0, 1, 2]
    for pixels, blob in zip(data.train.inputs, blobs, strict=True):
        expected = np.asarray(Image.open(io.BytesIO(blob)))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_parquet_of_grey_binary_images_with_named_columns(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_parquet(
            tmp_path / "d",
            part,
            a=[png(mode="L"), png(mode="L")],
            b=[png(), png()],
            fine=[0, 1],
            coarse=[0, 0],
        )
    source = sources.parquet(path=str(tmp_path / "d"), image_column="a", label_column="fine")
    data = load(source, tmp_path / "cache")
    assert data.shape == (1, 5, 6)
    assert data.classes == 2


def load_parquet(folder: Path, cache: Path, **columns: str):
    return load(sources.parquet(path=str(folder), **columns), cache)


def test_a_missing_or_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*train\.parquet"):
        load_parquet(tmp_path / "nowhere", tmp_path)
    folder = huggingface(tmp_path / "d", [png()], [0])
    (folder / "test.parquet").write_bytes((folder / "train.parquet").read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"test\.parquet is not a readable parquet file"):
        load_parquet(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"img": [png()], "label": ["cat"]}, {}, r"label_column: .* no column of integers"),
        ({"img": [png()], "label": [0.5]}, {"label_column": "label"}, "must hold integers"),
        ({"img": ["x"], "label": [0]}, {}, r"image_column: .* no column of encoded images"),
        ({"img": [png()], "a": [0], "b": [0]}, {}, "2 columns of integers, name one"),
        ({"img": [png()], "label": [0]}, {"image_column": "image"}, "has no image; it has img"),
        ({"img": [png()], "label": [-1]}, {}, "labels must be 0 or more, none missing"),
        ({"img": [b"junk"], "label": [0]}, {}, r"train\.parquet, row 0 is not a readable image"),
        (
            {"img": [png(), png((7, 7))], "label": [0, 1]},
            {},
            r"mixed sizes: .*row 1 is 7x7, .*row 0 6x5",
        ),
    ],
)
def test_what_is_wrong_with_a_parquet_file_is_said(tmp_path, columns, options, message) -> None:
    for part in ("train", "test"):
        write_parquet(tmp_path / "d", part, **columns)
    with pytest.raises(ConfigError, match=message):
        load_parquet(tmp_path / "d", tmp_path / "cache", **options)


def test_columns_of_one_name_are_counted(tmp_path: Path) -> None:
    for names in (["img", "img", "label"], ["img", "label", "label"]):
        columns = [[png()] if name == "img" else [0] for name in names]
        for part in ("train", "test"):
            pq.write_table(pa.table(columns, names), tmp_path / f"{part}.parquet")
        with pytest.raises(ConfigError, match=rf"train\.parquet has 2 columns named {names[1]}$"):
            sources.parquet(path=str(tmp_path)).decode()


def test_the_label_may_be_the_id_too(tmp_path: Path) -> None:
    folder = huggingface(tmp_path / "d", [png()] * 3, [2, 0, 2])
    source = sources.parquet(path=str(folder), label_column="label", id_column="label")
    train = source.decode().train
    assert (train.labels.tolist(), train.ids.tolist()) == ([2, 0, 2], [1, 0, 1])


def test_parts_that_number_their_classes_otherwise_are_refused(tmp_path: Path) -> None:
    table = pa.table({"img": [png()] * 2, "label": [0, 1]})

    def written(part: str, said: str) -> None:
        named = table.replace_schema_metadata({"huggingface": said})
        pq.write_table(named, tmp_path / f"{part}.parquet")

    def names(*classes: str) -> str:
        return json.dumps({"info": {"features": {"label": {"names": classes}, "x": {"names": 3}}}})

    written("train", names("cat", "dog"))
    for fits in (names("cat", "dog"), names("cat"), "{", "{}", "[" * 9999, names()):
        written("test", fits)
        assert sources.parquet(path=str(tmp_path)).decode().classes == 2
    written("test", names("dog", "cat"))
    said = r"label 0 is dog in .*test\.parquet, and cat in .*train\.parquet$"
    with pytest.raises(ConfigError, match=said):
        sources.parquet(path=str(tmp_path)).decode()


def test_one_image_in_colour_makes_all_colour_and_16_bits_are_refused(tmp_path: Path) -> None:
    folder = huggingface(tmp_path / "d", [png(mode="L"), png(seed=1)], [0, 1])
    data = load_parquet(folder, tmp_path / "cache")
    assert data.shape == (3, 5, 6)
    assert np.array_equal(
        data.train.inputs[1].permute(1, 2, 0).numpy(),
        np.asarray(Image.open(io.BytesIO(png(seed=1)))),
    )
    grey = torch.from_numpy(np.array(Image.open(io.BytesIO(png(mode="L")))))
    assert torch.equal(data.train.inputs[0], grey.expand(3, 5, 6))
    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 6), 40000, dtype=np.uint16)).save(buffer, "PNG")
    deep = huggingface(tmp_path / "deep", [png(mode="L"), buffer.getvalue()], [0, 1])
    with pytest.raises(ConfigError, match=r"row 1 has more than 8 bits a channel"):
        load_parquet(deep, tmp_path / "cache")


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    folder = huggingface(tmp_path / "d", [png(), png()], [0, 10**12])
    with pytest.raises(ConfigError, match="labels run up to 1000000000000, with only 2 training"):
        load_parquet(folder, tmp_path / "cache")


def test_an_empty_parquet_file_and_parts_of_other_sizes(tmp_path: Path) -> None:
    folder = huggingface(tmp_path / "d", [png()], [0])
    write_parquet(folder, "test", img=[png((9, 9))], label=[0])
    with pytest.raises(ConfigError, match="mixed sizes"):
        load_parquet(folder, tmp_path / "cache")
    empty = pa.table({"img": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(empty, folder / "test.parquet")
    with pytest.raises(ConfigError, match="has no rows"):
        load_parquet(folder, tmp_path / "cache")


def test_image_folder_takes_classes_from_folder_names(tmp_path: Path) -> None:
    for part, classes in (("train", "cat dog dog"), ("test", "dog")):
        for i, name in enumerate(classes.split()):
            file = tmp_path / "d" / part / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(seed=i))
    data = load(sources.image_folder(path=str(tmp_path / "d")), tmp_path / "cache")
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.test.labels.tolist() == [1]
    for hidden in ("train/.saved/x", "test/.saved/x", "train/cat/.saved/x", "train/.x"):
        file = tmp_path / "d" / f"{hidden}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png())
    source = sources.image_folder(path=str(tmp_path / "d"))
    assert (source.decode().train.labels.tolist(), source.classes) == ([0, 1, 1], ("cat", "dog"))
    (tmp_path / "d/test/fox").mkdir()
    (tmp_path / "d/test/fox/1.png").write_bytes(png())
    with pytest.raises(ConfigError, match=r"classes that train lacks: \['fox'\]"):
        sources.image_folder(path=str(tmp_path / "d"))
    with pytest.raises(ConfigError, match="no image files in"):
        sources.image_folder(path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mnist", r"train-images-idx3-ubyte\.gz and its kin into .*MNIST/raw"),
        ("fashion_mnist", r"into .*FashionMNIST/raw"),
        ("cifar10", r"cifar-10-python\.tar\.gz into"),
        ("cifar100", r"cifar-100-python\.tar\.gz into"),
        ("svhn", r"train_32x32\.mat and test_32x32\.mat into"),
    ],
)
def test_offline_the_file_and_its_folder_are_named(tmp_path, monkeypatch, name, wanted) -> None:
    import urllib.request

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    source = sources.from_torchvision(name=name, root=str(tmp_path))
    with pytest.raises(ConfigError, match=wanted):
        source.decode()


def test_torchvision_files_that_are_there_are_read(tmp_path: Path) -> None:
    # MNIST's idx format: big-endian magic, dimensions, bytes.
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
        header = np.array([2051, 3, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.array([2049, 3], ">i4").tobytes() + bytes([2, 0, 1])
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    data = sources.from_torchvision(name="mnist", root=str(tmp_path)).decode()
    train, test = data.train, data.test
    assert train.inputs.shape == (3, 1, 28, 28)
    assert test.labels.tolist() == [2, 0, 1]


# --- cache and pixels ----------------------------------------------------------------------


def test_the_cache_is_read_instead_of_decoding_and_a_damaged_one_is_made_anew(tmp_path) -> None:
    folder = huggingface(tmp_path / "d", [png(), png(seed=1)], [0, 1])
    source, decoded = sources.parquet(path=str(folder)), []

    def decode() -> LabelledData:
        decoded.append(source.key)
        return source.decode()

    counting = Source(source.key, decode)
    first = load(counting, tmp_path / "cache")
    again = load(counting, tmp_path / "cache")
    assert len(decoded) == 1
    assert torch.equal(first.train.inputs, again.train.inputs)
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    damaged = file.read_bytes()[:100]
    file.unlink()  # the mapped tensors above keep the old file
    file.write_bytes(damaged)
    assert torch.equal(load(counting, tmp_path / "cache").train.inputs, again.train.inputs)
    assert len(decoded) == 2
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_cached_pixels_are_mapped_not_copied(tmp_path: Path) -> None:
    store(tmp_path / "big.safetensors", {"x": torch.ones(32 << 20, dtype=torch.uint8)}, {})

    def memory(kind: str) -> int:
        rollup = Path("/proc/self/smaps_rollup").read_text()
        return next(int(row.split()[1]) for row in rollup.splitlines() if row.startswith(kind))

    before = memory("Pss_Anon"), memory("Pss_File")
    tensors, _ = fetch(tmp_path / "big.safetensors")
    assert int(tensors["x"].sum()) == 32 << 20
    assert memory("Pss_Anon") - before[0] < 8 << 10  # kB
    assert memory("Pss_File") - before[1] > 24 << 10


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cache_dir: cannot write"):
        load(sources.digits(), tmp_path / "file")


def test_normalised_pixels_have_mean_zero_and_variance_one() -> None:
    pixels = torch.randint(0, 256, (1500, 3, 4, 4), dtype=torch.uint8)
    pixels[:, 2] = 7  # a constant channel is only shifted
    mean, std = channel_statistics(pixels)
    x = normalise(pixels, mean, std)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    variance = x.var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0)


def test_crop_flip_gives_each_image_a_shift_and_maybe_a_mirror() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(1, 256, (40, 2, 6, 5), dtype=torch.uint8)
    out = crop_flip(pixels, torch.Generator().manual_seed(1), padding=1)
    assert out.shape == pixels.shape
    padded = torch.nn.functional.pad(pixels, (1, 1, 1, 1))
    seen = set()
    for image, wide in zip(out, padded, strict=True):
        windows = {
            (down, right): wide[:, down : down + 6, right : right + 5]
            for down in range(3)
            for right in range(3)
        }
        found = [
            (*at, flip)
            for at, window in windows.items()
            for flip in (False, True)
            if torch.equal(image, window.flip(-1) if flip else window)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 10
