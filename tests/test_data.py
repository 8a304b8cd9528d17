"""Sources, the cache of decoded images, partitions: real files, real partitioners."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fedwsa.components import Component, ConfigError
from fedwsa.data import sources
from fedwsa.data.cache import fetch, store
from fedwsa.data.federated import _open, open_federated
from fedwsa.data.images import channel_statistics, crop_flip, load_images, normalise
from fedwsa.data.partition import describe, make_shares, proportional


def png(size: tuple[int, int] = (6, 5), mode: str = "RGB", seed: int = 0) -> bytes:
    width, height = size
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder: Path, part: str = "train", **columns: list) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{part}.parquet")


def huggingface(folder: Path, images: list[bytes], labels: list[int]) -> Path:
    structs = [{"bytes": b, "path": None} for b in images]
    for part in ("train", "test"):
        write_parquet(folder, part, img=structs, label=labels)
    return folder


# --- sources -------------------------------------------------------------------------------


def test_digits_are_the_whole_set_split_once() -> None:
    train, test = sources.digits().decode()
    assert (len(train), len(test)) == (1437, 360)
    assert train.pixels.shape == (1437, 1, 8, 8)
    assert train.pixels.dtype == torch.uint8
    assert int(train.pixels.max()) == 255
    assert torch.bincount(test.labels).min() >= 34  # stratified: about 36 of each class


def test_parquet_returns_the_images_to_the_bit(tmp_path: Path) -> None:
    blobs = [png(seed=i) for i in range(4)]
    folder = huggingface(tmp_path / "d", blobs, [2, 0, 1, 2])
    data = load_images(sources.parquet(path=str(folder)), tmp_path / "cache")
    assert data.shape == (3, 5, 6)
    assert data.classes == 3
    assert data.train.labels.tolist() == [2, 0, 1, 2]
    for pixels, blob in zip(data.train.pixels, blobs, strict=True):
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
    data = load_images(source, tmp_path / "cache")
    assert data.shape == (1, 5, 6)
    assert data.classes == 2


def load_parquet(folder: Path, cache: Path, **columns: str):
    return load_images(sources.parquet(path=str(folder), **columns), cache)


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


def test_one_image_in_colour_makes_all_colour_and_16_bits_are_refused(tmp_path: Path) -> None:
    folder = huggingface(tmp_path / "d", [png(mode="L"), png(seed=1)], [0, 1])
    data = load_parquet(folder, tmp_path / "cache")
    assert data.shape == (3, 5, 6)
    assert np.array_equal(
        data.train.pixels[1].permute(1, 2, 0).numpy(),
        np.asarray(Image.open(io.BytesIO(png(seed=1)))),
    )
    grey = torch.from_numpy(np.array(Image.open(io.BytesIO(png(mode="L")))))
    assert torch.equal(data.train.pixels[0], grey.expand(3, 5, 6))
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
    data = load_images(sources.image_folder(path=str(tmp_path / "d")), tmp_path / "cache")
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.test.labels.tolist() == [1]
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
        labels = np.array([2049, 3], ">i4").tobytes() + bytes([7, 0, 9])
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    train, test = sources.from_torchvision(name="mnist", root=str(tmp_path)).decode()
    assert train.pixels.shape == (3, 1, 28, 28)
    assert test.labels.tolist() == [7, 0, 9]


# --- cache and pixels ----------------------------------------------------------------------


def test_the_cache_is_read_instead_of_decoding_and_a_damaged_one_is_made_anew(tmp_path) -> None:
    folder = huggingface(tmp_path / "d", [png(), png(seed=1)], [0, 1])
    source = sources.parquet(path=str(folder))
    first = load_images(source, tmp_path / "cache")

    def never() -> None:
        raise AssertionError("decoded again")

    again = load_images(sources.Source(source.key, never), tmp_path / "cache")
    assert torch.equal(first.train.pixels, again.train.pixels)
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    damaged = file.read_bytes()[:100]
    file.unlink()  # the mapped tensors above keep the old file
    file.write_bytes(damaged)
    assert torch.equal(load_images(source, tmp_path / "cache").train.pixels, again.train.pixels)
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
        load_images(sources.digits(), tmp_path / "file")


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


# --- partitions ----------------------------------------------------------------------------

LABELS = np.random.default_rng(0).integers(0, 10, 2000)
PARTITIONS = {
    "iid": {},
    "dirichlet": {"alpha": 0.5, "min_size": 5},
    "inner_dirichlet": {"alpha": 0.1},
    "pathological": {"classes_per_client": 2},
    "shards": {"shards_per_client": 2},
    "linear": {},
    "exponential": {"ratio": 20.0},
}


def part(name: str, **arguments: object) -> Component:
    return Component(**{"_target_": f"fedwsa.data.partition.{name}", **arguments})


@pytest.mark.parametrize("name", PARTITIONS)
def test_no_sample_is_lost_or_doubled_and_a_seed_repeats(name: str) -> None:
    component = part(name, **PARTITIONS[name])
    shares, again, other = (make_shares(component, LABELS, 10, 20, s) for s in (0, 0, 1))
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(2000))
    hashes = [describe(component, s, LABELS, 10, 0).hash for s in (shares, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_partitions_have_the_property_they_are_named_for() -> None:
    def counts(name: str, **arguments: object) -> np.ndarray:
        component = part(name, **arguments)
        shares = make_shares(component, LABELS, 10, 20, 0)
        return describe(component, shares, LABELS, 10, 0).label_counts

    assert set(counts("iid").sum(1)) == {100}
    assert set((counts("pathological", classes_per_client=3) > 0).sum(1)) == {3}
    assert (counts("shards", shards_per_client=2) > 0).sum(1).max() <= 4
    assert set(counts("inner_dirichlet", alpha=0.1).sum(1)) == {100}
    # 1 + 2 + … + 20 = 210 parts of 2000 samples: 9.52 for the first, 190.5 for the last.
    linear = counts("linear").sum(1)
    assert (linear[0], linear[-1]) == (10, 190)
    exponential = counts("exponential", ratio=20.0).sum(1)
    assert exponential[-1] / exponential[0] == pytest.approx(20, rel=0.05)
    # A smaller alpha leaves fewer classes with most of a client's samples.
    largest = [
        (c.max(1) / c.sum(1)).mean()
        for c in (counts("dirichlet", alpha=a, min_size=1) for a in (0.1, 1.0, 100.0))
    ]
    assert largest[0] > largest[1] > largest[2]


def test_size_partitions_do_not_follow_the_order_of_the_data() -> None:
    ordered = np.sort(LABELS)
    component = part("linear")
    counts = describe(component, make_shares(component, ordered, 10, 5, 0), ordered, 10, 0)
    assert (counts.label_counts > 0).all()


def test_proportional_sizes_add_up() -> None:
    assert proportional(10, [1, 1, 1]) == [4, 3, 3]
    assert sum(proportional(1437, list(range(1, 38)))) == 1437


@pytest.mark.parametrize(
    ("component", "clients", "message"),
    [
        (part("iid"), 3000, r"clients\.count: 3000 clients, but there are only 2000 samples"),
        (part("dirichlet", alpha=-1.0, min_size=1), 5, r"partition\.alpha: .*greater than 0"),
        (part("dirichlet", alpha=0.01, min_size=50), 30, "partition=inner_dirichlet, whose sizes"),
        (
            part("pathological", classes_per_client=11),
            5,
            r"classes_per_client: 11 classes per client, but the data has only 10",
        ),
        (part("pathological", classes_per_client=2), 3, "no client has any sample of class"),
        (part("shards", shards_per_client=500), 10, "need as many samples"),
        (part("exponential", ratio=1e6), 100, "of 100 clients would have no sample"),
        (part("dirichlet", alpha=float("inf"), min_size=1), 5, r"finite number \(got inf\)"),
        (part("iid", alpha=1.0), 5, "iid has no such argument; it takes nothing"),
        (part("dirichlet", alpha=1.0), 5, r"partition\.min_size: dirichlet needs it"),
        (part("dirichlet", alpha="x", min_size=1), 5, r"partition\.alpha: .*valid number"),
        (part("sorted"), 5, "fedwsa.data.partition has no sorted"),
    ],
)
def test_partitions_that_cannot_be_are_refused_in_one_line(component, clients, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_shares(component, LABELS, 10, clients, 0)
    assert "\n" not in str(caught.value)


def test_partitions_are_cached_and_described(tmp_path: Path) -> None:
    arguments = (Component(**{"_target_": "fedwsa.data.sources.digits"}), part("iid"), 7, 3)
    first = open_federated(*arguments, str(tmp_path))
    open_federated(*arguments[:3], 4, str(tmp_path))  # another one, so that 3 is read from disk
    second = open_federated(*arguments, str(tmp_path))
    assert first is not second
    assert first.partition.hash == second.partition.hash
    described = json.loads(json.dumps(second.partition.as_dict()))
    assert described["arguments"] == {"clients": 7, "seed": 3}
    assert described["samples"] == sum(map(len, described["indices"])) == 1437
    assert np.sum(described["label_counts"]) == 1437


def test_a_changed_partition_function_is_run_again(tmp_path: Path, monkeypatch) -> None:
    code = "import numpy as np\ndef cut(labels, clients, seed):\n    return np.array_split({}, 2)\n"
    module = tmp_path / "own_partition.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    digits = Component(**{"_target_": "fedwsa.data.sources.digits"})
    own = Component(**{"_target_": "own_partition.cut"})
    hashes = []
    for order in ("np.arange(1437)", "np.arange(1437)[::-1]"):
        module.write_text(code.format(order))
        sys.modules.pop("own_partition", None)
        importlib.invalidate_caches()
        _open.cache_clear()
        hashes.append(open_federated(digits, own, 2, 0, str(tmp_path / "c")).partition.hash)
    assert hashes[0] != hashes[1]


def test_a_fifth_of_a_client_is_held_out_and_nothing_of_a_tiny_one(tmp_path: Path) -> None:
    digits = Component(**{"_target_": "fedwsa.data.sources.digits"})
    data = open_federated(digits, part("iid"), 14, 0, str(tmp_path))
    share = len(data.partition.shares[0])  # 1437 / 14 = 102.6
    train, held = data.split(0)
    assert len(held) == round(share / 5)
    assert sorted(train.tolist() + held.tolist()) == data.partition.shares[0].tolist()
    assert torch.equal(data.split(0)[1], held)
    tiny = open_federated(digits, part("iid"), 400, 0, str(tmp_path))
    train, held = tiny.split(0)
    assert len(train) in (3, 4)
    assert len(held) == 0
