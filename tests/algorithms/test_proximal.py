"""FedProx's local term (arXiv 1812.06127)."""

from __future__ import annotations

import torch
from torch import nn

from fedwsa.algorithms.fedprox.client import Proximal


def test_the_gradient_is_that_of_half_mu_times_the_squared_distance() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    objective = Proximal(model, {"config": {"proximal-mu": 0.5}})
    received = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p)
    distance = sum(((p - r) ** 2).sum() for p, r in zip(model.parameters(), received, strict=True))
    expected = torch.autograd.grad(0.5 / 2 * distance, list(model.parameters()))
    objective.add_gradient()
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, e)
    assert objective.end() == {}


def test_mu_zero_and_no_instruction_add_nothing() -> None:
    for config in ({"proximal-mu": 0.0}, {}):
        model = nn.Linear(3, 2)
        objective = Proximal(model, {"config": config})
        objective.add_gradient()
        assert all(p.grad is None for p in model.parameters())
