"""Labelled images in memory: decoded once, kept on disk, mapped by every process.

The decoded images lie in one safetensors file in the cache. Loading maps the file, so that
all processes of a machine share one copy in the page cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedwsa.components import ConfigError
from fedwsa.data.cache import fetch, place, store


@dataclass(frozen=True, eq=False)
class Images:
    """A labelled set of images.

    Attributes
    ----------
    pixels : Tensor
        uint8, shape ``(N, C, H, W)``.
    labels : Tensor
        int64, shape ``(N,)``.
    ids : Tensor or None
        int64, shape ``(N,)``: which natural client (0 … K−1) a training sample comes from.
    """

    pixels: Tensor
    labels: Tensor
    ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for classification.

    Attributes
    ----------
    train, test : Images
        The pool that is partitioned among the clients, and the global test set.
    classes : int
        Labels are 0 … classes − 1.
    mean, std : tuple of float
        Of the training pixels scaled to [0, 1], a number per channel.
    """

    train: Images
    test: Images
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Attributes
    ----------
    key : str
        Names the content: the same key, the same images.
    decode : callable
        Returns the training and the test images; called when the cache has none.
    """

    key: str
    decode: Callable[[], tuple[Images, Images]]


def load_images(source: Source, cache_dir: str | Path) -> ImageData:
    """The images of a source, from the cache if they are there; else decode and cache them.

    Raises
    ------
    ConfigError
        If the cache cannot be written.
    """
    file = place(cache_dir) / "images" / f"{source.key}.safetensors"
    cached = fetch(file)
    if cached is None:
        train, test = source.decode()
        classes = int(max(train.labels.max(), test.labels.max())) + 1
        if classes > len(train):
            raise ConfigError(
                f"dataset: labels run up to {classes - 1}, with only {len(train)} training "
                "images; labels must be 0, 1, ... up to the number of classes"
            )
        mean, std = channel_statistics(train.pixels)
        ids = {} if train.ids is None else {"train.ids": train.ids}
        store(
            file,
            {
                **ids,
                "train.pixels": train.pixels,
                "train.labels": train.labels,
                "test.pixels": test.pixels,
                "test.labels": test.labels,
            },
            {"facts": json.dumps({"classes": classes, "mean": mean, "std": std})},
        )
        cached = fetch(file)  # read back, so that the first process shares the mapped copy too
        if cached is None:
            raise ConfigError(f"cache_dir: {file} cannot be read back")
    tensors, metadata = cached
    facts = json.loads(metadata["facts"])
    return ImageData(
        Images(tensors["train.pixels"], tensors["train.labels"], tensors.get("train.ids")),
        Images(tensors["test.pixels"], tensors["test.labels"]),
        facts["classes"],
        tuple(facts["mean"]),
        tuple(facts["std"]),
    )


def channel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels scaled to [0, 1].

    A constant channel gets the standard deviation 1.
    """
    total = torch.zeros(pixels.shape[1], dtype=torch.float64)
    squares = total.clone()
    for chunk in torch.split(pixels, 1024):  # in pieces: as floats the set would take four times
        values = chunk.double()  # whole numbers: the sums are exact
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = pixels[:, 0].numel()
    mean = total / count / 255
    std = (squares / count / 255**2 - mean.square()).clamp(min=0).sqrt()
    std[std < 1e-6] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 pixels ``(N, C, H, W)`` as floats with zero mean and unit variance, on their device."""
    shift = torch.tensor(mean, device=pixels.device).view(-1, 1, 1)
    scale = torch.tensor(std, device=pixels.device).view(-1, 1, 1)
    return (pixels.float() / 255 - shift) / scale


def crop_flip(pixels: Tensor, random: torch.Generator, padding: int = 4) -> Tensor:
    """Shift each image by up to ``padding`` pixels over black, mirror half of them.

    The usual augmentation for CIFAR, drawn for each image of the batch ``(N, C, H, W)``.
    """
    n, _, height, width = pixels.shape
    down, right = torch.randint(0, 2 * padding + 1, (2, n), generator=random).to(pixels.device)
    mirrored = (torch.rand(n, generator=random) < 0.5).to(pixels.device)
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    rows = down[:, None] + torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device)
    columns = right[:, None] + torch.where(mirrored[:, None], columns.flip(0), columns)
    return padded[
        torch.arange(n, device=pixels.device)[:, None, None], :, rows[:, :, None], columns[:, None]
    ].permute(0, 3, 1, 2)
