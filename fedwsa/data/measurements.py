"""Tables and time series: numbers of several channels, measured once or at several times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.data.examples import Examples, LabelledData
from fedwsa.models.inputs import SeriesShape

_CONSTANT = 1e-7  # of a channel's largest value: what varies by less is rounding
_TOLD = 2e-6  # what varies by less is hardly told apart in 32 bits


@dataclass(frozen=True, eq=False)
class Measurements(LabelledData):
    """Numbers as float32 ``(N, C, T)``: C channels at T times; of a table C columns, and T is 1.

    Attributes
    ----------
    mean, std : sequence of float
        Of the training examples, a number per channel.
    channels : tuple of str
        What the channels are called, where they have names: the columns of a table.
    words : tuple of str
        What the classes are called, in the order of their labels, where they have names.
    """

    mean: Sequence[float]
    std: Sequence[float]
    channels: Sequence[str] = ()
    words: Sequence[str] = ()

    kind: ClassVar[str] = "measurements"

    @classmethod
    def of(
        cls,
        train: Examples,
        test: Examples,
        classes: int,
        channels: Sequence[str] = (),
        words: Sequence[str] = (),
    ) -> Measurements:
        """A data set of these numbers, with its channels measured."""
        values = train.inputs.double()
        std, mean = torch.std_mean(values, dim=(0, 2), correction=0)
        std[std <= _CONSTANT * values.abs().amax((0, 2))] = 1.0
        return cls(train, test, classes, mean.tolist(), std.tolist(), channels, words)

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called."""
        return tuple(self.words)

    def require_like(self, other: Mapping[str, Any]) -> None:
        """Refuse a table of other columns: channel 3 is to be the same thing everywhere."""
        if (theirs := list(other["channels"])) != (ours := list(self.channels)):
            apart = sorted(set(theirs) ^ set(ours)) or ["their order"]
            raise ValueError(f"other columns than the server's: {', '.join(apart)}")

    @property
    def shape(self) -> SeriesShape:
        """Channels and times."""
        return SeriesShape(*self.train.inputs.shape[1:])

    def require(self) -> None:
        """Numbers must be finite float32, ``(N, C, T)``, and those of both parts alike."""
        for examples in (self.train, self.test):
            inputs = examples.inputs
            if inputs.dtype != torch.float32 or inputs.dim() != 3:
                raise ValueError(
                    "measurements must be float32 of shape (N, channels, times); these are "
                    f"{str(inputs.dtype)[6:]} of shape {tuple(inputs.shape)}"
                )
            if not bool(inputs.isfinite().all()):
                raise ValueError("measurements must be finite numbers")
        shapes = [tuple(part.inputs.shape[1:]) for part in (self.train, self.test)]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"examples for training are {shapes[0]}, those of the test {shapes[1]}"
            )
        super().require()

    def prepare(self, inputs: Tensor) -> Tensor:
        """Zero mean and unit variance in each channel."""
        shift = torch.tensor(self.mean, device=inputs.device).view(-1, 1)
        scale = torch.tensor(self.std, device=inputs.device).view(-1, 1)
        return (inputs - shift) / scale

    def facts(self) -> dict[str, Any]:
        """Mean and standard deviation of the channels, their names, and the classes'."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": list(self.channels),
            "words": list(self.words),
        }


def single(values: NDArray[Any], name: Callable[[tuple[int, ...]], str], where: str) -> Tensor:
    """Numbers of a column or channel as float32.

    Parameters
    ----------
    name
        What to call the value at an index, in messages.
    where
        What to call all of them.

    Raises
    ------
    ConfigError
        If one is missing or too large, or they differ by less than 32 bits can tell.
    """
    wide = values.astype(np.float64)
    with np.errstate(over="ignore"):
        small = wide.astype(np.float32)
    if not (good := np.isfinite(small)).all():
        at = tuple(int(i) for i in np.unravel_index(int(np.argmin(good)), values.shape))
        raise ConfigError(f"dataset.path: {name(at)}: missing, or no number of 32 bits")
    if 0 < wide.std() < _TOLD * np.abs(wide).max():
        raise ConfigError(
            f"dataset.path: {where} differs by so little beside its size ({wide.flat[0]:g}) that "
            "32 bits cannot tell: subtract its mean"
        )
    return torch.from_numpy(small)
