"""Which networks can be trained in a stack: what the trial at the start finds."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from clients.stack import Stack, StepBatch
from clients.stacking import stacking
from fedwsa.models.inputs import ImageShape

IMAGE = ImageShape(1, 4, 4)


class Layers(nn.Module):
    """Two tied layers with something between them."""

    def __init__(self, between: object = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.head = nn.Linear(8, 3)
        nn.init.zeros_(self.head.weight)  # hides all that lies before it
        self.register_buffer("mask", torch.rand(8) < 0.7)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("part", self.a.bias.detach()[:2])  # moves with the bias
        self.held = [self.a.bias]  # no module's
        self.between = between or (lambda model, x: x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(torch.relu(self.inp(x.flatten(1)))) * self.mask
        return self.head(self.b(self.between(self, x)))


def counted(model: Layers, x: Tensor) -> Tensor:
    model.count = model.count + 1
    return x / model.count


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda m, x: dropout(x), "what it draws would be another"),
        (lambda m, x: x if random.random() < 0.5 else 2 * x, "what it draws would be another"),
        (counted, "stacked, count is trained in another way"),
    ],
)
def test_what_each_client_needs_for_itself_cannot_be_stacked(between: object, reason: str) -> None:
    model = Layers(between)
    model.part = torch.zeros(2)
    assert str(stacking(model, IMAGE, 3).reason).startswith(reason)


def test_what_others_draw_meanwhile_is_not_the_model_s() -> None:
    model = Layers(lambda m, x: m.once(x))
    model.part = torch.zeros(2)

    def once(x: Tensor) -> Tensor:
        model.once = lambda x: x
        random.random()
        return x

    model.once = once
    assert stacking(model, IMAGE, 3).reason is None
    assert model.once is once  # as it was


def test_what_looks_across_large_batches_alone_is_found_at_the_run_s() -> None:
    model = Layers(lambda m, x: x - x.mean(0) if len(x) >= 8 else x)
    model.part = torch.zeros(2)
    assert stacking(model, IMAGE, 3, batch=4).padded
    assert not stacking(model, IMAGE, 3, batch=8).padded
    assert not stacking(model, IMAGE, 3, batch=1000).padded


def test_a_buffer_that_looks_at_a_weight_and_a_weight_held_elsewhere_are_found() -> None:
    assert (
        stacking(Layers(), IMAGE, 3).reason == "stacked, part is trained in another way than alone"
    )
    model = Layers(lambda m, x: x + m.held[0])
    model.part = torch.zeros(2)
    assert "a.bias is trained in another way" in str(stacking(model, IMAGE, 3).reason)


@pytest.mark.parametrize(
    ("between", "padded"),
    [
        (lambda m, x: x, True),
        (lambda m, x: (x - x.mean(0)) / (x.std(0) + 1), False),
        (lambda m, x: x - x.mean(), False),
    ],
)
def test_a_stack_of_tied_weights_trains_as_alone_whatever_looks_across_a_batch(
    between: object, padded: bool
) -> None:
    model = Layers(between)
    model.part = torch.zeros(2)
    found = stacking(model, IMAGE, 3)
    assert (found.reason, found.padded) == (None, padded)
    nn.init.normal_(model.head.weight)
    stack = Stack(model, 2, found.padded)
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 4, *IMAGE, generator=draw), torch.randint(3, (2, 4), generator=draw)
    x[1, 2:] = 0.0  # padding
    losses = stack.backward(StepBatch(x, y, (4, 2)))
    for k, n in enumerate((4, 2)):
        loss = nn.functional.cross_entropy(model(x[k, :n]), y[k, :n])
        weights = dict(model.named_parameters())
        expected = torch.autograd.grad(loss, list(weights.values()))
        torch.testing.assert_close(losses[k], loss.detach())
        for name, gradient in zip(weights, expected, strict=True):
            torch.testing.assert_close(stack.gradients[name][k], gradient, rtol=1e-4, atol=1e-6)
