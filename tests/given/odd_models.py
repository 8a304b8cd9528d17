"""Networks as somebody else might write them, with all that is rare in ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedwsa.models import ImageShape


class _Everything(nn.Module):
    """A frozen layer, BatchNorm, tied weights, and buffers of every kind."""

    mask: Tensor
    order: Tensor
    shift: Tensor

    def __init__(self, inputs: int, classes: int, units: int = 16) -> None:
        super().__init__()
        self.body = nn.Linear(inputs, units).requires_grad_(False)
        self.norm = nn.BatchNorm1d(units)
        self.first, self.second = nn.Linear(units, units), nn.Linear(units, units)
        self.second.weight = self.first.weight  # tied
        self.head = nn.Linear(units, classes)
        # Drawn, so that another seed gives another network.
        self.register_buffer("mask", torch.rand(units) < 0.7)
        self.register_buffer("order", torch.randperm(inputs))
        self.register_buffer("shift", torch.randn(units), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.body(x.flatten(1)[:, self.order]))
        x = torch.relu(self.first(x)) + self.shift
        x = torch.relu(self.second(x))
        return self.head(x * self.mask)


def everything(image: ImageShape, classes: int) -> nn.Module:
    """BatchNorm, a frozen layer, tied weights, integer, boolean and non-persistent buffers."""
    return _Everything(image[0] * image[1] * image[2], classes)


class _Masked(nn.Module):
    """A linear layer behind a random mask that no state dict has."""

    mask: Tensor

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)
        self.register_buffer("mask", torch.rand(inputs) < 0.7, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) * self.mask)


def masked(image: ImageShape, classes: int) -> nn.Module:
    """A network of which a part is drawn by the seed and never saved."""
    return _Masked(image[0] * image[1] * image[2], classes)


class _Inside(nn.Module):
    """All layers lie under a name that wrappers have, too."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.module(x)
        return scores


def inside(image: ImageShape, classes: int) -> nn.Module:
    """A network that calls its only part ``module``, as DataParallel does."""
    return _Inside(image[0] * image[1] * image[2], classes)


class _Drawing(nn.Module):
    """A linear layer that sees its inputs through noise."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) + 0.1 * torch.randn(x.shape[1:].numel()))


def drawing(image: ImageShape, classes: int) -> nn.Module:
    """A network that draws from torch's generator in each pass."""
    return _Drawing(image[0] * image[1] * image[2], classes)
