"""A network that all clients of a process share is as it was after each of them."""

from __future__ import annotations

import random
from collections import defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

from clients.borrowed import borrowed
from clients.passes import SinglePasses
from fedwsa.algorithms.moon.client import Moon
from fedwsa.algorithms.objective import LocalRun


class Interrupted(BaseException):
    """As the end of a client's time: no Exception."""


def test_hooks_modes_and_what_is_trained_are_put_back_however_it_ends() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).eval()
    model[0].bias.requires_grad_(False)
    asked = {"config": {"moon-mu": 1.0, "moon-temperature": 0.5}}

    def interrupted() -> None:
        with borrowed(model):
            moon = Moon(model, asked, LocalRun(0.1, state={"moon": model.state_dict()}))
            SinglePasses(model, [moon]).__enter__()
            model.train()
            model[1].momentum = 0.7
            model[2].forward = lambda x: x  # type: ignore[method-assign]
            model[0].bias.requires_grad_(True)
            with torch.no_grad():
                model[0].weight.fill_(3.0)
            raise Interrupted

    with pytest.raises(Interrupted):
        interrupted()
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not any(m.training for m in model.modules())
    assert model[1].momentum == 0.1
    assert "forward" not in vars(model[2])
    assert not model[0].bias.requires_grad
    assert (model[0].weight == 3).all()  # values stay


class Counting(nn.Linear):
    """A layer that keeps what it counts, remembers and draws in whatever Python has."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.steps, self.nested = 0, {"n": [0], "more": (defaultdict(int), {1})}
        self.last, self.recent = None, deque([0], maxlen=2)
        self.torch_draw = torch.Generator().manual_seed(1)
        self.numpy_draw, self.python_draw = np.random.default_rng(1), random.Random(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.nested["n"][0] += 1
        self.nested["more"][0]["seen"] += 1
        self.nested["more"][1].add(self.steps + 1)
        self.recent.append(self.steps)
        self.last = super().forward(x)
        return self.last

    def told(self) -> tuple[object, ...]:
        drawn = torch.rand((), generator=self.torch_draw).item()
        drawn = (drawn, self.numpy_draw.random(), self.python_draw.random())
        more = [str(value) for value in (self.steps, self.nested, self.last, self.recent)]
        return (*drawn, *more)


def test_what_a_layer_counts_remembers_and_draws_is_no_next_client_s() -> None:
    model = nn.Sequential(Counting())
    counts = model[0].nested["n"]
    found = []
    for _ in range(2):
        with borrowed(model):
            model(torch.ones(1, 2))
            found.append(model[0].told())
    assert found[0] == found[1]
    assert model[0].told() != found[0]
    assert model[0].nested["n"] is counts
    assert counts == [0]
    assert model[0].recent.maxlen == 2
