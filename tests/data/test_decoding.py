"""What images hold beyond 8 bits of grey or colour: brought there by a rule, or refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedwsa.config.component import ConfigError
from fedwsa.data import sources
from fedwsa.data.decoding import decode_image, decode_images
from fedwsa.data.parquet import natural_ids, read_part

SIDE = np.arange(20, dtype=np.uint8).reshape(4, 5) * 10


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ink(value: int) -> bytes:
    """An image of one colour, whose alpha channel has the picture."""
    rgba = np.full((4, 5, 4), value, dtype=np.uint8)
    rgba[..., 3] = SIDE
    return encoded(Image.fromarray(rgba))


def deep() -> bytes:
    """A PNG of 16 bits a channel in colour, one pixel, by hand: Pillow cannot write it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(7))
    parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_transparent_images_are_laid_over_the_background() -> None:
    # Black ink over white: 255 − alpha. White ink over black: alpha.
    over_white = decode_image(ink(0), 255)
    assert np.array_equal(over_white, np.repeat(255 - SIDE[..., None], 3, axis=-1))
    assert np.array_equal(decode_image(ink(255), 0)[..., 0], SIDE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_are_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    # What the numbers mean, from the EXIF standard: row 0 and column 0 are on these sides.
    upright = {
        1: SIDE,
        2: SIDE[:, ::-1],
        3: SIDE[::-1, ::-1],
        4: SIDE[::-1],
        5: SIDE.T,
        6: np.rot90(SIDE, -1),
        7: SIDE[::-1, ::-1].T,
        8: np.rot90(SIDE),
    }[orientation]
    found = decode_image(encoded(Image.fromarray(SIDE), exif=exif), 255)
    assert np.array_equal(found[..., 0], upright)


def test_cmyk_becomes_rgb() -> None:
    ink = np.zeros((8, 8, 4), dtype=np.uint8)
    ink[..., 0], ink[..., 3] = 200, 50
    found = decode_image(encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=100), 255)
    # 255 · (1 − C) · (1 − K), C = 200 / 255, K = 50 / 255; JPEG rounds.
    assert found.shape == (8, 8, 3)
    assert np.abs(found.astype(int) - [44, 205, 205]).max() <= 2


FRAMES = encoded(
    Image.fromarray(SIDE), "GIF", save_all=True, append_images=[Image.fromarray(SIDE[::-1])]
)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ink(255), r"image 1 is all white over a white background: .*dataset\.background=black"),
        (deep(), r"image 1 has more than 8 bits a channel \(RGB;16B\)"),
        (
            encoded(Image.fromarray(SIDE.astype(np.uint16) * 300), "TIFF"),
            r"8 bits .*mode I;16",
        ),
        (b"P6 1 1 65535\n" + bytes(6), r"image 1 has more than 8 bits a channel \(up to 65535\)"),
        (FRAMES, "image 1 holds more than one picture"),
        (encoded(Image.fromarray(SIDE))[:-30], "image 1 is not a readable image"),
        (None, "image 1 has no image"),
        ("far.png", r"image 1 has no image, only the path far\.png"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(image: bytes | str | None, message: str) -> None:
    good = encoded(Image.fromarray(SIDE))
    with pytest.raises(ConfigError, match=message) as caught:
        decode_images([[good], [image]], 2, lambda i: f"image {i}", "Decoding")
    assert "\n" not in str(caught.value)


def write(folder: Path, name: str, **columns: object) -> None:
    images = pa.array([encoded(Image.fromarray(SIDE + i)) for i in range(3)])
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2], **columns}), folder / name)


ONE = encoded(Image.fromarray(SIDE))
FAR = [{"bytes": ONE, "path": None}, {"bytes": None, "path": "far.png"}, {"bytes": ONE, "path": ""}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, None, 1]}, "row 1: label is missing"),
        ({"label": pa.array([0, 1, None]).dictionary_encode()}, "row 2: label is missing"),
        ({"label": [0, 1, -1]}, "row 2: label is -1"),
        ({"image": [ONE, None, ONE]}, "row 1 has no image"),
        ({"image": FAR}, r"row 1 has no image, only the path far\.png: write the bytes"),
        ({"image": [ONE, ONE, FRAMES]}, "row 2 holds more than one picture"),
    ],
)
def test_rows_that_lack_something_are_named(tmp_path: Path, columns: dict, message: str) -> None:
    write(tmp_path, "train.parquet", **columns)
    write(tmp_path, "test.parquet")
    with pytest.raises(ConfigError, match=rf"train\.parquet, {message}"):
        sources.parquet(path=str(tmp_path)).decode()


def test_columns_are_read_whatever_they_are_wrapped_into(tmp_path: Path) -> None:
    fixed = encoded(Image.fromarray(SIDE), "BMP")
    names = pa.array(["ann", "bob", "ann"]).dictionary_encode()
    columns = {
        "image": pa.array([fixed] * 3, pa.binary(len(fixed))),
        "label": pa.array([7, 0, 2]).dictionary_encode(),  # whose indices are 0, 1, 2
        "who": names,
    }
    write(tmp_path, "train.parquet", **columns)
    files = [tmp_path / "train.parquet"]
    train = read_part(files, {"image": "image", "label": None, "id": "who"}, "white")
    assert train.labels.tolist() == [7, 0, 2]
    assert np.array_equal(train.inputs[2, 0], SIDE)
    assert natural_ids(files, "who").tolist() == [0, 1, 0]


def test_images_that_lie_deeper_are_not_passed_over(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "0.png").write_bytes(ONE)
    assert len(sources.image_folder(path=str(tmp_path)).decode().train) == 2
    deeper = tmp_path / "train" / "dog" / "more"
    deeper.mkdir()
    (deeper / "1.png").write_bytes(ONE)
    with pytest.raises(ConfigError, match=r"more is a folder; images lie in .*train/CLASS/ itself"):
        sources.image_folder(path=str(tmp_path))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_shards_are_one_part_whatever_binary_they_are(tmp_path: Path, kind: pa.DataType) -> None:
    images = [encoded(Image.fromarray(SIDE + i)) for i in range(4)]

    def part(name: str, chosen: slice) -> None:
        write(tmp_path, name, image=pa.array(images[chosen], kind), label=[0, 1])

    part("train-00000-of-00002.parquet", slice(0, 2))
    part("test.parquet", slice(0, 2))
    with pytest.raises(ConfigError, match=r"no file .*train-00001-of-00002\.parquet, a shard of 2"):
        sources.parquet(path=str(tmp_path))
    part("train-00001-of-00002.parquet", slice(2, 4))
    train = sources.parquet(path=str(tmp_path)).decode().train
    assert train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert train.labels.tolist() == [0, 1, 0, 1]
