"""Objectives of which one client's does what it must not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedwsa import seeding
from fedwsa.algorithms.objective import (
    ForwardPass,
    LocalRun,
    Objective,
    Weights,
    gradients,
    trainable,
)
from fedwsa.wire.content import Content

CLIENT = 2


class Spoilt(Objective):
    """Knows whether it is client 2's, of a run with seed 0."""

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        assert local is not None
        assert local.samples is not None
        number = int(content["config"]["server-round"])
        drawn = local.samples.generator("who").initial_seed()
        self.mine = drawn == seeding.key(0, "who", number, CLIENT)
        self.weights = list(trainable(model).values())


class NotANumber(Spoilt):
    @torch.no_grad()
    def add_gradient(self) -> None:
        if self.mine:
            gradients(self.weights)[0].fill_(torch.nan)


class Raises(Spoilt):
    def add_gradient(self) -> None:
        if self.mine:
            raise RuntimeError("my bug")


class OfOne(Objective):
    """Has a loss, and does not say what that looks at."""

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        assert isinstance(model, nn.Module)

    def loss(self, seen: ForwardPass) -> Tensor:
        return seen.inputs.flatten(1).sum(1) * 0.0
