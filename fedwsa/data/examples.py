"""Labelled examples of any kind in memory, and what a run must know of them.

A kind of examples, such as images or text, is a subclass of :class:`LabelledData`: it says how
inputs, as they are stored, become the input of a model. Everything else treats all kinds alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.models.inputs import InputShape

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(inputs as stored, generator) → inputs as stored, changed at random."""


@dataclass(frozen=True, eq=False)
class Examples:
    """A labelled set of examples.

    Attributes
    ----------
    inputs : Tensor
        As stored: images, uint8, shape ``(N, C, H, W)``, or token sequences ``(N, T)``.
    labels : Tensor
        int64, shape ``(N,)``, or ``(N, T)``: one for each position of a sequence.
    ids : Tensor or None
        int64, shape ``(N,)``: the natural client that an example comes from, 0 … K − 1; None
        where the data have none.
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("inputs", "labels", "ids"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and not (name == "ids" and value is None):
                raise ValueError(f"Examples: {name} must be a torch tensor, not {_kind(value)}")
            if value is not None and (not value.dim() or len(value) != len(self.inputs)):
                count = len(value) if value.dim() else "one number for"
                raise ValueError(f"Examples: {count} {name} for {len(self.inputs)} inputs")

    def require(self, classes: int) -> None:
        """Refuse labels and natural clients that are none.

        Raises
        ------
        ValueError
            Says which.
        """
        for name, numbers in {"labels": self.labels, "ids": self.ids}.items():
            if numbers is None:
                continue
            if numbers.dtype != torch.int64:
                raise ValueError(f"{name} must be int64, not {str(numbers.dtype)[6:]}")
            if numbers.numel() and int(numbers.min()) < 0:
                raise ValueError(f"{name} must not be negative; there is {int(numbers.min())}")
        if self.labels.numel() and int(self.labels.max()) >= classes:
            most = int(self.labels.max())
            raise ValueError(f"labels run up to {most}, and there are {classes} classes")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor) -> Examples:
        """Some of the examples, by their indices."""
        ids = None if self.ids is None else self.ids[chosen]
        return Examples(self.inputs[chosen], self.labels[chosen], ids)

    @property
    def strata(self) -> Tensor:
        """One number per example, shape ``(N,)``: what partitions by label go by.

        The label; of a sequence, which has one at each position, the natural client, since who
        speaks is what makes its labels differ from others'. Where nobody is named, all are alike.
        """
        if self.labels.dim() == 1:
            return self.labels
        return self.labels.new_zeros(len(self)) if self.ids is None else self.ids


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


@dataclass(frozen=True, eq=False)
class LabelledData(ABC):
    """A data set for classification, of one kind of examples.

    Attributes
    ----------
    train, test : Examples
        The pool that is partitioned among the clients, and the global test set.
    classes : int
        Labels are 0 … classes − 1.
    """

    train: Examples
    test: Examples
    classes: int

    kind: ClassVar[str]
    """What its examples are, in a word."""

    augmentations: ClassVar[Mapping[str, Augment]] = {}
    """Name of an option of ``dataset.augment`` → what it does."""

    def require(self) -> None:
        """Refuse examples that are not as they must be stored.

        Raises
        ------
        ValueError
            Says what is wrong with which part.
        """
        for part in ("train", "test"):
            try:
                getattr(self, part).require(self.classes)
            except ValueError as error:
                raise ValueError(f"{part}: {error}") from None

    @property
    @abstractmethod
    def shape(self) -> InputShape:
        """Of an example, which the builders of models are told."""

    @property
    def strata(self) -> int:
        """How many there are, see :attr:`Examples.strata`."""
        by_label = self.train.labels.dim() == 1
        return self.classes if by_label else int(self.train.strata.max()) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called, where the data say it."""
        return ()

    def require_like(self, other: Mapping[str, Any]) -> None:  # noqa: B027
        """Refuse inputs that mean other things than those of a data set with these facts.

        Raises
        ------
        ValueError
            Says what is unlike.
        """

    @abstractmethod
    def prepare(self, inputs: Tensor) -> Tensor:
        """Inputs as stored → the input of a model, on their device."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a model's user must know beside its weights, as plain values.

        The arguments, beside ``train``, ``test`` and ``classes``, that make such a data set.
        """

    def augmentation(self, name: str) -> Augment | None:
        """What an option of ``dataset.augment`` does; None for ``none``.

        Raises
        ------
        ConfigError
            If it is for examples of another kind.
        """
        if name == "none":
            return None
        if name not in self.augmentations:
            allowed = ", ".join(["none", *self.augmentations])
            raise ConfigError(f"dataset.augment={name}: not for {self.kind}, which takes {allowed}")
        return self.augmentations[name]


def numbered(names: NDArray[Any]) -> Tensor:
    """Natural clients by their names, numbered from 0 in the order of these: int64 ``(N,)``."""
    return torch.from_numpy(np.unique(names, return_inverse=True)[1]).long()


def count_classes(train: Tensor, test: Tensor) -> int:
    """How many classes there are, by the highest label of both parts.

    Raises
    ------
    ConfigError
        If there are fewer examples to train on.
    """
    classes = int(max(train.max(), test.max())) + 1
    if classes > len(train):
        raise ConfigError(
            f"dataset: labels run up to {classes - 1}, with only {len(train)} training examples; "
            "labels must be 0, 1, ... up to the number of classes"
        )
    return classes


def batch_sizes(n: int, size: int) -> list[int]:
    """Sizes of the batches of an epoch over ``n`` samples.

    A last batch of a single sample joins the one before: BatchNorm cannot train on one.
    """
    sizes = [size] * (n // size) + ([n % size] if n % size else [])
    if size > 1 and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [size + 1]
    return sizes
