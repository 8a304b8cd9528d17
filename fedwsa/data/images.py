"""Images: what their channels look like on average, and their augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedwsa.data.examples import Augment, Examples, LabelledData, count_classes
from fedwsa.models.inputs import ImageShape


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


def coloured(images: Examples, channels: int) -> Examples:
    """Grey images with as many channels, all alike; others as they are."""
    if images.inputs.shape[1] != 1 or channels == 1:
        return images
    inputs = images.inputs.expand(-1, channels, -1, -1).contiguous()
    return Examples(inputs, images.labels, images.ids)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
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


def flip(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Mirror half of the images ``(N, C, H, W)``, drawn for each."""
    mirrored = (torch.rand(len(pixels), generator=random) < 0.5).to(pixels.device)
    return torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)


@dataclass(frozen=True, eq=False)
class ImageData(LabelledData):
    """Images of one size, each with a label.

    Attributes
    ----------
    mean, std : sequence of float
        Of the training pixels scaled to [0, 1], a number per channel.
    """

    mean: Sequence[float]
    std: Sequence[float]

    kind: ClassVar[str] = "images"
    augmentations: ClassVar[Mapping[str, Augment]] = {"flip": flip, "crop_flip": crop_flip}

    @classmethod
    def of(cls, train: Examples, test: Examples) -> ImageData:
        """A data set of these images, with its classes counted and its channels measured.

        Raises
        ------
        ConfigError
            If labels are no numbers from 0 to the number of classes.
        """
        for examples in (train, test):
            _require_pixels(examples.inputs)
        classes = count_classes(train.labels, test.labels)
        return cls(train, test, classes, *channel_statistics(train.inputs))

    @classmethod
    def own(cls, train: Examples) -> ImageData:
        """What a node of a deployment has: no test part, maybe not all classes."""
        classes = int(train.labels.max()) + 1
        return cls(train, train[torch.arange(0)], classes, *channel_statistics(train.inputs))

    @property
    def shape(self) -> ImageShape:
        """Channels, height and width."""
        return ImageShape(*self.train.inputs.shape[1:])

    def require(self) -> None:
        """Images must be uint8, ``(N, C, H, W)``, and those of both parts alike."""
        for examples in (self.train, self.test):
            _require_pixels(examples.inputs)
        shapes = [tuple(part.inputs.shape[1:]) for part in (self.train, self.test)]
        if len(set(shapes)) > 1:
            raise ValueError(f"images for training are {shapes[0]}, those of the test {shapes[1]}")
        super().require()

    def prepare(self, inputs: Tensor) -> Tensor:
        """Normalise pixels."""
        return normalise(inputs, self.mean, self.std)

    def facts(self) -> dict[str, Any]:
        """Mean and standard deviation of the channels."""
        return {"mean": list(self.mean), "std": list(self.std)}


def _require_pixels(inputs: Tensor) -> None:
    if inputs.dtype != torch.uint8 or inputs.dim() != 4:
        raise ValueError(
            "images must be uint8 of shape (N, C, H, W), pixels from 0 to 255; these are "
            f"{str(inputs.dtype)[6:]} of shape {tuple(inputs.shape)}"
        )
