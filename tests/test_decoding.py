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

from fedwsa.components import ConfigError
from fedwsa.data import sources
from fedwsa.data.decoding import decode_image, decode_images

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


FRAMES = encoded(
    Image.fromarray(SIDE), "GIF", save_all=True, append_images=[Image.fromarray(SIDE[::-1])]
)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ink(255), r"image 1 is all white over a white background: .*dataset\.background=black"),
        (deep(), r"image 1 has more than 8 bits a channel \(RGB;16B\)"),
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


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_shards_are_one_part_whatever_binary_they_are(tmp_path: Path, kind: pa.DataType) -> None:
    images = [encoded(Image.fromarray(SIDE + i)) for i in range(4)]

    def write(name: str, chosen: slice) -> None:
        columns = {"image": pa.array(images[chosen], kind), "label": pa.array([0, 1])}
        pq.write_table(pa.table(columns), tmp_path / name)

    write("train-00000-of-00002.parquet", slice(0, 2))
    write("test.parquet", slice(0, 2))
    with pytest.raises(ConfigError, match=r"no file .*train-00001-of-00002\.parquet, a shard of 2"):
        sources.parquet(path=str(tmp_path))
    write("train-00001-of-00002.parquet", slice(2, 4))
    train = sources.parquet(path=str(tmp_path)).decode().train
    assert train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert train.labels.tolist() == [0, 1, 0, 1]
