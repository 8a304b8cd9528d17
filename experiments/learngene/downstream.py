"""What the networks of the learngene benchmark are trained for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from experiments.learngene.schema import LearngeneConfig
from fedwsa import seeding
from fedwsa.config.component import ConfigError
from fedwsa.data.examples import Examples, LabelledData
from fedwsa.data.federated import public_share
from fedwsa.data.images import ImageData
from fedwsa.data.sources import digits
from fedwsa.learngene.fit import Lesson
from fedwsa.models import ImageShape


@dataclass(frozen=True)
class Downstream:
    """What the networks are trained for: images, data set, classes."""

    lesson: Lesson
    data: LabelledData
    augment: str

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.data.classes


def downstream(config: LearngeneConfig, data: LabelledData, device: str) -> Downstream:
    """What the networks are trained for.

    Raises
    ------
    ConfigError
        If there are not enough images that are not public.
    """
    bench = config.bench
    if bench.transfer is not None and not isinstance(data, ImageData):
        raise ConfigError(f"bench.transfer={bench.transfer}: needs images, not {data.kind}")
    if bench.transfer == "digits":
        assert isinstance(data, ImageData)
        other = _digits(data.shape)
        count = min(bench.images or len(other.train), len(other.train))
        # A digit that is mirrored is none.
        return Downstream(*_on(other, count, device, config.seed), augment="none")
    if bench.transfer == "classes":
        if config.classes is None:
            raise ConfigError("bench.transfer=classes: needs classes, those to learn from")
        data = _without(data, set(config.classes))
    public = public_share(len(data.train), config.init.public, config.seed)
    left = torch.ones(len(data.train), dtype=torch.bool)
    left[public] = False
    rest = left.nonzero().flatten()
    if len(rest) < (bench.images or 1):
        raise ConfigError(f"bench.images: only {len(rest)} training images are not public")
    data = replace(data, train=data.train[rest])
    lesson, data = _on(data, bench.images or len(rest), device, config.seed)
    return Downstream(lesson, data, config.dataset.augment)


def _on(data: LabelledData, count: int, device: str, seed: int) -> tuple[Lesson, LabelledData]:
    """So many training images of a data set, drawn by the seed."""
    random = seeding.generator(seed, "downstream images")
    chosen = torch.randperm(len(data.train), generator=random)[:count]
    return Lesson(data.train[chosen], data, device, seed), data


def _digits(shape: ImageShape) -> ImageData:
    """Digits in the shape of other images: enlarged, the channel repeated."""
    channels, sides = shape.channels, shape[1:]
    found = digits().decode()

    def enlarged(images: Examples) -> Examples:
        pixels = nn.functional.interpolate(images.inputs.float(), sides, mode="bilinear")
        pixels = pixels.round().to(torch.uint8).expand(-1, channels, -1, -1).contiguous()
        return Examples(pixels, images.labels)

    train = enlarged(found.train)
    values = train.inputs.float() / 255
    mean, std = float(values.mean()), float(values.std())
    return ImageData(train, enlarged(found.test), 10, (mean,) * channels, (std,) * channels)


def _without(data: LabelledData, classes: set[int]) -> LabelledData:
    """The images of all other classes, which are counted from 0 again."""
    others = [c for c in range(data.classes) if c not in classes]
    place = torch.full((data.classes,), -1)
    place[others] = torch.arange(len(others))

    def kept(images: Examples) -> Examples:
        labels = place[images.labels]
        return Examples(images.inputs[labels >= 0], labels[labels >= 0])

    return replace(data, train=kept(data.train), test=kept(data.test), classes=len(others))
