"""Image files of several kinds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


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
