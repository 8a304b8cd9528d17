"""What a network looks at: the shape of an example, which says its kind as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ImageShape(NamedTuple):
    """Of an image; the network answers ``(N, C, H, W)`` by ``(N, classes)``."""

    channels: int
    height: int
    width: int


class SeriesShape(NamedTuple):
    """Of a time series, of one time for a table; ``(N, C, T)`` is answered by ``(N, classes)``."""

    channels: int
    times: int


class TextShape(NamedTuple):
    """Of a text, character by character, of as many kinds as there are classes.

    The network answers tokens ``(N, T)`` by ``(N, classes, T)``, each position by what comes next,
    from the tokens up to it.
    """

    length: int


class DocumentShape(NamedTuple):
    """Of a text with one label; tokens ``(N, T)`` are answered by ``(N, classes)``.

    There are ``vocabulary`` different ones; ``padding`` stands behind the end of a text.
    """

    length: int
    vocabulary: int
    padding: int = 0


InputShape = ImageShape | SeriesShape | TextShape | DocumentShape
"""One of them."""

KINDS: dict[type[InputShape], str] = {
    ImageShape: "images",
    SeriesShape: "tables and time series",
    TextShape: "text",
    DocumentShape: "documents",
}
"""What they are the shapes of."""

_NAMES: dict[str, type[InputShape]] = {
    "image": ImageShape,
    "series": SeriesShape,
    "text": TextShape,
    "document": DocumentShape,
}


def described_shape(shape: InputShape) -> dict[str, int | str]:
    """A shape as plain values, for JSON."""
    kind = next(name for name, known in _NAMES.items() if isinstance(shape, known))
    return {"kind": kind, **shape._asdict()}


def shape_from(described: dict[str, int | str]) -> InputShape:
    """The shape that :func:`described_shape` described.

    Raises
    ------
    ValueError
        If nothing of the sort is described.
    """
    numbers = dict(described)
    try:
        kind = _NAMES[str(numbers.pop("kind"))]
        return kind(**{name: int(number) for name, number in numbers.items()})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{described} is no shape of an example") from error


def _size(shape: InputShape) -> Sequence[int]:
    """Of an example's tensor."""
    return shape[:1] if isinstance(shape, DocumentShape) else shape


def blank_inputs(shape: InputShape, count: int, device: str | torch.device = "cpu") -> Tensor:
    """So many empty examples, as a network takes them: tokens for text, else floats."""
    kind = torch.int64 if isinstance(shape, TextShape | DocumentShape) else torch.float32
    return torch.zeros(count, *_size(shape), dtype=kind, device=device)


def blank_labels(shape: InputShape, count: int, device: str | torch.device = "cpu") -> Tensor:
    """Labels for as many examples: one each, or one for each position of a text."""
    size = (count, *shape) if isinstance(shape, TextShape) else (count,)
    return torch.zeros(size, dtype=torch.int64, device=device)


def drawn_inputs(
    shape: InputShape, count: int, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """So many examples and labels drawn at random, on the generator's device."""
    size, device = (count, *_size(shape)), generator.device
    if isinstance(shape, TextShape | DocumentShape):
        codes = shape.vocabulary if isinstance(shape, DocumentShape) else classes
        inputs = torch.randint(codes, size, generator=generator, device=device)
    else:
        inputs = torch.randn(size, generator=generator, device=device)
    labels = torch.randint(
        classes, tuple(blank_labels(shape, count).shape), generator=generator, device=device
    )
    return inputs, labels


def answer_size(shape: InputShape, count: int, classes: int) -> tuple[int, ...]:
    """Size of a network's scores for so many examples."""
    return (count, classes, *shape) if isinstance(shape, TextShape) else (count, classes)
