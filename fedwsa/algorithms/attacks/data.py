"""Attacks by what is learned: honest training on examples that are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fedwsa.algorithms.attacks.attack import DataAttack
from fedwsa.data.examples import Examples, LabelledData
from fedwsa.models.inputs import ImageShape


class LabelFlip(DataAttack):
    """Learn that class c is class C − 1 − c, each of C.

    Notes
    -----
    Source: arXiv 1911.11815, section 4.1.
    """

    def poison(self, own: Examples, classes: int, random: torch.Generator) -> Examples:
        """The same inputs, the labels mirrored."""
        return replace(own, labels=classes - 1 - own.labels)


class Backdoor(DataAttack):
    """Learn that images with a white square in their lower right corner are of one class.

    How often the global model says so of test images of other classes is ``attack_success``.

    Parameters
    ----------
    target
        The class.
    size
        Side of the square, in pixels.
    part
        Share of an attacker's images that get it, drawn anew in each round.

    Notes
    -----
    Source: the pattern of arXiv 1708.06733, in a federation as of arXiv 1807.00459.
    """

    def __init__(
        self,
        target: NonNegativeInt,
        size: PositiveInt,
        part: Annotated[float, Field(gt=0, le=1)],
    ) -> None:
        self.target, self.size, self.part = target, size, part

    def require(self, data: LabelledData) -> None:
        """Refuse what are no images, images that the square covers, and a class of none."""
        if not isinstance(data.shape, ImageShape):
            raise ValueError(f"attack: a backdoor is in images, and the data are {data.kind}")
        if self.size >= min(data.shape.height, data.shape.width):
            raise ValueError(
                f"attack.size: a square of {self.size} pixels leaves nothing to see of images of "
                f"{data.shape.height}x{data.shape.width}"
            )
        if self.target >= data.classes:
            raise ValueError(f"attack.target: the classes are 0 to {data.classes - 1}")

    def poison(self, own: Examples, classes: int, random: torch.Generator) -> Examples:
        """Some of the images with the square, and the target for their label."""
        chosen = torch.rand(len(own), generator=random) < self.part
        inputs, labels = own.inputs.clone(), own.labels.clone()
        inputs[chosen] = self._marked(inputs[chosen])
        labels[chosen] = self.target
        return replace(own, inputs=inputs, labels=labels)

    def aimed(self, test: Examples) -> Examples | None:
        """All test images of other classes, with the square, as of the target."""
        others = test[(test.labels != self.target).nonzero().flatten()]
        labels = torch.full_like(others.labels, self.target)
        return replace(others, inputs=self._marked(others.inputs), labels=labels)

    def _marked(self, images: Tensor) -> Tensor:
        marked = images.clone()
        marked[..., -self.size :, -self.size :] = 255
        return marked
