"""Image files to pixels: what becomes of depth, colour, transparency and orientation.

Whatever an image holds that 8 bits of grey or of red, green and blue cannot, is either brought
there by a rule that ``docs/partitions.md`` states, or the image is refused by its name.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.progress import track

from fedwsa.config.component import ConfigError
from fedwsa.data.examples import Examples
from fedwsa.data.images import coloured

Pixels = NDArray[np.uint8]
Transform = Callable[[Image.Image], Image.Image]
Background = Literal["white", "black"]

Encoded = bytes | Path | str | None
"""An encoded image: its bytes or its file; or none, maybe with a path that says where it was."""

BATCH = 512
"""Most images that are read at once."""

_GREY = ("1", "L", "LA", "La")
_COLOUR = ("RGB", "RGBX", "P", "CMYK", "YCbCr", "HSV")
_ROTATED = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}


class _Refused(ValueError):
    """What is wrong with an image, to stand behind its name."""


def decode_images(
    batches: Iterable[Sequence[Encoded]],
    count: int,
    name: Callable[[int], str],
    description: str,
    background: Background = "white",
    transform: Transform | None = None,
) -> torch.Tensor:
    """Decode images of one size to uint8, shape ``(N, C, H, W)``; C is 1 if all are grey.

    Parameters
    ----------
    batches
        The images, in their order; no more than two batches are in memory at once.
    count
        N.
    name
        What to call the image with an index, in messages.
    background
        What shows through where an image is transparent.
    transform
        What is done to each image.

    Raises
    ------
    ConfigError
        Names the first image that is refused.
    """
    pixels: Pixels = np.empty((count, 0, 0, 1), dtype=np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = _in_order(pool, batches, background, transform)
        for i in track(range(count), description, total=count, transient=True):
            try:
                image = next(decoded)
            except _Refused as error:
                raise ConfigError(f"dataset.path: {name(i)} {error}") from None
            height, width, channels = image.shape
            if i == 0:
                pixels = np.empty((count, height, width, channels), dtype=np.uint8)
            if (height, width) != pixels.shape[1:3]:
                raise ConfigError(
                    f"dataset.path: images of mixed sizes: {name(i)} is {width}x{height}, "
                    f"{name(0)} {pixels.shape[2]}x{pixels.shape[1]}; dataset.transform="
                    f"[{{Resize:[{pixels.shape[1]},{pixels.shape[2]}]}}] makes them alike"
                )
            if channels > pixels.shape[-1]:  # the first in colour: all become colour
                pixels = np.repeat(pixels, channels, axis=-1)
            pixels[i] = image
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _in_order(
    pool: ThreadPoolExecutor,
    batches: Iterable[Sequence[Encoded]],
    background: Background,
    transform: Transform | None,
) -> Iterator[Pixels]:
    """Decoded images; while those of a batch are taken, the next one is read."""
    waiting: deque[Iterator[Pixels]] = deque()
    ground = {"white": 255, "black": 0}[background]
    for batch in batches:
        waiting.append(pool.map(lambda encoded: _decoded(encoded, ground, transform), batch))
        if len(waiting) > 1:
            yield from waiting.popleft()
    for images in waiting:
        yield from images


def _decoded(encoded: Encoded, ground: int, transform: Transform | None) -> Pixels:
    """An image as it is to be."""
    pixels = decode_image(encoded, ground)
    if transform is None:
        return pixels
    try:
        image = transform(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    except (TypeError, ValueError) as error:
        raise _Refused(f"cannot be transformed: {_reason(error)}") from None
    if not all(image.size):
        raise _Refused("is empty when it is transformed")
    return np.atleast_3d(np.asarray(image))


def decode_image(encoded: Encoded, ground: int) -> Pixels:
    """Decode an image to shape ``(H, W, 1)`` or ``(H, W, 3)``; ``ground`` shows through it."""
    if encoded is None:
        raise _Refused("has no image")
    if isinstance(encoded, str):
        raise _Refused(
            f"has no image, only the path {encoded}: write the bytes of images into the file, or "
            "take dataset=image_folder"
        )
    try:
        image = _loaded(encoded.read_bytes() if isinstance(encoded, Path) else encoded)
        if image.has_transparency_data:
            return _flattened(image, ground)
        if image.mode not in ("L", "RGB"):
            if image.mode not in (*_GREY, *_COLOUR):
                raise _Refused(f"has mode {image.mode}, which is neither grey nor colour")
            image = image.convert("L" if image.mode in _GREY else "RGB")
        return np.atleast_3d(np.asarray(image))
    except _Refused:
        raise
    except UnidentifiedImageError:
        raise _Refused("is not a readable image") from None
    except Exception as error:  # damaged files make Pillow raise anything
        raise _Refused(f"is not a readable image ({_reason(error)})") from None


def _loaded(encoded: bytes) -> Image.Image:
    """An image that is upright, of one frame and of 8 bits a channel at most."""
    image = Image.open(io.BytesIO(encoded))
    depth = f" (mode {image.mode})" if image.mode.startswith(("I", "F")) else _depth(image)
    if depth:
        raise _Refused(f"has more than 8 bits a channel{depth}")
    several = getattr(image, "is_animated", False) or len(image.info.get("sizes", ())) > 1
    if several and image.format != "MPO":  # a photograph, and previews of it
        raise _Refused("holds more than one picture; keep one of them")
    image.load()
    if image.format in ("TIFF", "MPO") or not _ROTATED.isdisjoint(image.info):
        return ImageOps.exif_transpose(image)
    return image


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _depth(image: Any) -> str:
    """What shows more than 8 bits a channel, which Pillow would cut off without a word."""
    if image.format in ("JPEG2000", "AVIF"):
        bits = _stated_bits(image)
        return f" ({bits} bits)" if bits > 8 else ""
    for tile in image.tile:
        said = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for word in (tile[0], *said):
            is_raw = isinstance(word, str) and not word.startswith("BGR;")  # 16 bits in all
            if is_raw and word.rstrip("BLNS").endswith(("16", "32")):
                return f" ({word})"
        if image.format == "PPM" and isinstance(said[-1], int) and said[-1] > 255:
            return f" (up to {said[-1]})"
    return ""


def _stated_bits(image: Any) -> int:
    """Bits a channel, from the header of a JPEG 2000 code stream or of an AVIF."""
    image.fp.seek(0)
    content = image.fp.read()
    if image.format == "AVIF":
        at = content.find(b"pixi")  # then version and flags, how many channels, bits of each
        return max(content[at + 9 : at + 9 + content[at + 8]], default=8) if at >= 0 else 8
    at = content.find(b"\xff\x4f\xff\x51")  # then lengths and sizes, bits − 1 of the first channel
    return (content[at + 42] & 0x7F) + 1 if at >= 0 else 8


def _flattened(image: Image.Image, ground: int) -> Pixels:
    """An image over a ground, which shows through where it is transparent.

    If nothing were to be seen of what it holds, it is refused.
    """
    grey = image.mode in _GREY
    stored = np.asarray(image.convert("LA" if grey else "RGBA"))
    colour, alpha = stored[..., :-1].astype(np.int32), stored[..., -1:].astype(np.int32)
    seen = ((colour * alpha + ground * (255 - alpha) + 127) // 255).astype(np.uint8)
    if _constant(seen) and not _constant(stored):
        here, other = ("white", "black") if ground else ("black", "white")
        raise _Refused(
            f"is all {here} over a {here} background: what it shows is in its alpha channel or "
            f"under it; take dataset.background={other}, or save it without transparency"
        )
    return seen


def _constant(pixels: Pixels) -> bool:
    return bool((pixels == pixels[0, 0]).all())


def in_one_shape(
    train: Examples, test: Examples, names: Sequence[object]
) -> tuple[Examples, Examples]:
    """Both parts with the same channels: where one is in colour, the grey one becomes colour.

    Raises
    ------
    ConfigError
        If their images differ in size.
    """
    if train.inputs.shape[2:] != test.inputs.shape[2:]:
        shapes = [tuple(part.inputs.shape[1:]) for part in (train, test)]
        raise ConfigError(
            f"dataset.path: images of mixed sizes (channels, height, width): {names[0]} has "
            f"{shapes[0]}, {names[1]} {shapes[1]}"
        )
    channels = max(part.inputs.shape[1] for part in (train, test))
    return coloured(train, channels), coloured(test, channels)
