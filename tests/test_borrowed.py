"""A network that all clients of a process share is as it was after each of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clients.borrowed import borrowed
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
            Moon(model, asked, LocalRun(0.1, state={"moon": model.state_dict()}))
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
