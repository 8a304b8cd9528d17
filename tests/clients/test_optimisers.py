"""The steps of a client's optimiser are torch's own, without what torch imports for its classes."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import nn

from clients.optimisers import Group, SingleOptimiser
from fedwsa.schema.conditions import Conditions

KINDS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def weights() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((3, 2), (4,), (5,))]


@pytest.mark.parametrize(
    ("kind", "fused", "momentum"),
    [c for c in product(KINDS, (True, False), (0.0, 0.9)) if c[0] == "sgd" or not c[2]],
)
def test_steps_are_those_of_torch_to_the_bit(kind: str, fused: bool, momentum: float) -> None:
    ours, theirs = weights(), weights()
    groups: list[Group] = [{"params": ours[:2]}, {"params": ours[2:], "weight_decay": 0.0}]
    conditions = Conditions(0.05, 0.1, 1, 1, kind)  # type: ignore[arg-type]
    optimiser = SingleOptimiser(groups, conditions, momentum, fused)
    more = {"momentum": momentum} if kind == "sgd" else {}
    reference = KINDS[kind](
        [{"params": theirs[:2]}, {"params": theirs[2:], "weight_decay": 0.0}],
        lr=0.05,
        weight_decay=0.1,
        fused=fused,
        **more,
    )
    for step in range(4):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            # One is without a gradient for a while, as a layer that a model passes over.
            a.grad, b.grad = (None, None) if i == 2 and step < 2 else (gradient, gradient.clone())
        optimiser.step()
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


TRAINED = """
import sys
import torch
from clients.cohort import train_stack
from clients.stack import Stack
from clients.training import Samples, train
from fedwsa.schema.conditions import Conditions
from tests.given.training import data, local, net

settings = local(epochs=1, momentum=0.9, clip_norm=1.0)
conditions = Conditions.usual(settings)
samples = Samples(*data(), lambda x: x, torch.Generator())
train(net(), samples, settings, conditions, [])
train_stack(Stack(net(), 2), [samples] * 2, settings, [conditions] * 2, [[], []])
print("torch._dynamo" in sys.modules)
"""


def test_training_alone_and_in_a_stack_does_not_import_torch_s_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINED], capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout == "False\n"
