"""What clients take that are trained at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clients.footprint import Room, client_bytes, free_bytes
from fedwsa.models.inputs import ImageShape
from tests.given.training import local


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ({"momentum": 0.0}, 3),
        ({"momentum": 0.9}, 4),
        ({"optimiser": "adam", "momentum": 0.9}, 5),
        ({"optimisers": ["sgd", "adamw"], "momentum": 0.0}, 5),
    ],
)
def test_weights_count_once_for_each_tensor_of_their_size(changes: dict, copies: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    shape = ImageShape(3, 2, 2)
    few, many = (client_bytes(model, shape, local(batch_size=n, **changes)) for n in (10, 30))
    # Of an example: 12 inputs, 5 logarithms of probabilities, a label of 8 bytes.
    assert many - few == 20 * (12 * 4 + 5 * 4 + 8)
    left = few - 10 * (12 * 4 + 5 * 4 + 8)
    assert left == 4 * (12 * 5 + 5) * copies + 4  # and the sum of the examples' weights


def test_what_a_model_keeps_is_as_before() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 5))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    client_bytes(model, ImageShape(3, 2, 2), local(batch_size=10))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_workers_share_what_is_free() -> None:
    assert Room(each=10, free=1000, sharing=1).most == 80
    assert Room(each=10, free=1000, sharing=4).most == 20
    assert Room(each=10**9, free=1000, sharing=4).most == 1
    assert free_bytes("cpu") > 0
