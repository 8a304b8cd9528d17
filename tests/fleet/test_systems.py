"""Simulated devices: draws within binomial bounds, times and steps worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedwsa.config.component import Component, ConfigError
from fedwsa.data.evaluation import jain_index
from fedwsa.fleet.systems import Device, Task, available, drops_out, share_of_round, speed
from fedwsa.models import build_model
from fedwsa.models.flops import forward_flops, training_flops
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.fleet import Fleet

CLIENTS, ROUNDS = 20, 200


def within_chance(hits: int, draws: int, probability: float) -> bool:
    """Whether a count is what independent draws give, but for one case in a million."""
    low, high = binom.interval(1 - 1e-6, draws, probability)
    return low <= hits <= high


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_clients_drop_out_as_often_as_they_are_said_to(probability: float) -> None:
    out = np.array(
        [[drops_out(0, r, c, probability) for c in range(CLIENTS)] for r in range(1, ROUNDS + 1)]
    )
    assert within_chance(int(out.sum()), out.size, probability)
    for of_one_client in out.T:
        assert within_chance(int(of_one_client.sum()), ROUNDS, probability)
    # Of neighbours, in rounds as in clients, both drop out by p².
    for both in (out[1:] & out[:-1], out[:, 1:] & out[:, :-1]):
        assert within_chance(int(both.sum()), both.size, probability**2)
    again = [drops_out(0, 7, c, probability) for c in range(CLIENTS)]
    assert again == out[6].tolist()
    assert not any(drops_out(0, r, 0, 0.0) for r in range(ROUNDS))


def test_a_share_of_the_clients_is_there_and_more_of_them_at_a_larger_share() -> None:
    few, many = (
        [set(available(3, r, CLIENTS, share)) for r in range(1, ROUNDS + 1)] for share in (0.3, 0.6)
    )
    assert within_chance(sum(map(len, few)), CLIENTS * ROUNDS, 0.3)
    assert all(a <= b for a, b in zip(few, many, strict=True))
    assert len(set(map(frozenset, few))) > ROUNDS / 2
    assert available(3, 1, CLIENTS, 1.0) == list(range(CLIENTS))
    assert [set(available(4, r, CLIENTS, 0.3)) for r in range(1, ROUNDS + 1)] != few


def test_somebody_is_always_there_and_not_always_the_same() -> None:
    there = [available(0, r, CLIENTS, 1e-9) for r in range(1, 100)]
    assert {len(clients) for clients in there} == {1}
    assert len({clients[0] for clients in there}) > CLIENTS / 2


def test_a_list_of_shares_is_repeated_over_the_rounds() -> None:
    assert [share_of_round([0.1, 0.5, 1.0], r) for r in range(1, 8)] == [
        *(0.1, 0.5, 1.0, 0.1, 0.5, 1.0, 0.1)
    ]
    assert share_of_round(0.7, 5) == 0.7


def test_speeds_are_log_normal_with_median_one_and_belong_to_the_client() -> None:
    drawn = np.array([speed(0, client, 0.8) for client in range(2000)])
    # ln(speed)/σ is standard normal.
    assert kstest(np.log(drawn) / 0.8, "norm").pvalue > 1e-6
    assert within_chance(int((drawn > 1).sum()), len(drawn), 0.5)
    assert {speed(0, client, 0.0) for client in range(9)} == {1.0}
    assert speed(0, 5, 0.8) == drawn[5]
    # Twice the spread: the factor squared. Classes of devices multiply.
    assert speed(0, 5, 1.6) == pytest.approx(drawn[5] ** 2)
    assert speed(0, 5, 0.8, [0.3]) == pytest.approx(0.3 * drawn[5])
    classes = [speed(0, client, 0.0, [0.1, 1.0]) for client in range(500)]
    assert within_chance(classes.count(0.1), 500, 0.5)


# 100 operations and 10 bytes a second; 20 bytes down and as many up are 2 s each; of 25 operations
# a sample, batches of 4, 4 and 2 samples take 1 s, 1 s and 0.5 s.
TASK = Task(Device(100.0, 10.0), 20, 25.0, [4, 4, 2])


def test_seconds_are_bytes_down_operations_and_bytes_up() -> None:
    assert TASK.seconds(3, up=20) == 2 + 2.5 + 2
    assert TASK.seconds(1, up=5) == 2 + 1 + 0.5
    assert TASK.flops(2) == 8 * 25
    assert TASK.device.seconds(0, 50, 0) == 0.5


@pytest.mark.parametrize(
    ("deadline", "steps"), [(9, 3), (6.5, 3), (6.4, 2), (6, 2), (5, 1), (4.99, 0), (0.1, 0)]
)
def test_as_many_steps_fit_as_leave_time_to_send_the_result(deadline: float, steps: int) -> None:
    assert TASK.steps_within(deadline) == steps


def test_a_whole_training_has_the_batches_of_all_epochs() -> None:
    conditions = Conditions(lr=0.1, weight_decay=0.0, batch_size=4, epochs=2)
    # A last batch of one joins the one before.
    assert conditions.batches(9) == [4, 5, 4, 5]
    assert conditions.batches(3) == [3, 3]


def test_training_operations_of_dense_layers_by_hand() -> None:
    # Forward 2·(64·200 + 200·200 + 200·10), as much for the gradients of the weights, and for
    # those of what goes into the second and third layer 2·(200·200 + 200·10).
    expected = 2 * 2 * (64 * 200 + 200 * 200 + 200 * 10) + 2 * (200 * 200 + 200 * 10)
    assert training_flops(compose().model, ImageShape(1, 8, 8), 10) == expected


@pytest.mark.parametrize("name", ["cnn", "resnet20", "vit"])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    component = compose([f"model={name}", "model.width=0.25"]).model
    model = build_model(component, ImageShape(3, 32, 32), 10, seed=0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(model(torch.randn(2, 3, 32, 32)).sum())
    assert training_flops(component, ImageShape(3, 32, 32), 10) == counter.get_total_flops() / 2


class Looks(nn.Module):
    """A stranger's network, which goes by the values of its inputs and its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.begins_at = float(self.layer.weight.detach().sum())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1) * (1 if x.abs().max().item() < 9 else 0))


def looks(image: tuple[int, int, int], classes: int) -> nn.Module:
    return Looks()


def test_a_network_that_looks_at_values_is_counted_too() -> None:
    component = Component.of("tests.fleet.test_systems.looks")
    # Forward and the gradient of the weights; images need none.
    assert training_flops(component, ImageShape(1, 8, 8), 10) == 2 * 2 * 64 * 10
    assert forward_flops(Looks(), ImageShape(1, 8, 8), 3) == 3 * 2 * 64 * 10


def test_devices_of_a_run_scale_with_their_client_s_speed() -> None:
    config = compose(["clients.speed_spread=1", "clients.flops_per_second=1e9"])
    for client in range(3):
        factor, device = speed(0, client, 1.0), Fleet(config).device(client)
        assert device.flops_per_second == pytest.approx(1e9 * factor)
        assert device.bytes_per_second == pytest.approx(1e6 * factor)
    # A device that carries a size by clients.sizes=speed is as fast as that.
    sized = compose(["clients.sizes=speed", "clients.speeds=[0.3]"])
    assert Fleet(sized).device(1).flops_per_second == pytest.approx(0.3 * 1e10)


def test_jain_is_one_for_equals_and_one_nth_where_one_has_all() -> None:
    assert jain_index([0.3] * 7) == pytest.approx(1)
    assert jain_index([0, 0, 0.9, 0, 0]) == pytest.approx(1 / 5)
    assert jain_index([1, 2, 3]) == pytest.approx(36 / (3 * 14))
    assert jain_index([0.0, 0.0]) == 1
    assert math.isclose(jain_index([2, 4, 6]), jain_index([1, 2, 3]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("clients.dropout=1", "clients.dropout: input should be less than 1"),
        ("clients.dropout=-0.1", "clients.dropout: input should be greater than or equal to 0"),
        ("clients.availability=0", "clients.availability: must be a share, above 0 and at most 1"),
        ("clients.availability=[]", "clients.availability: must be a share, above 0"),
        ("clients.availability=[0.5,2]", "clients.availability: must be a share, above 0"),
        ("clients.availability=often", "clients.availability: must be a share, above 0"),
        ("clients.deadline=0", "clients.deadline: input should be greater than 0"),
        ("clients.late=wait", "clients.late: input should be 'drop' or 'cut'"),
        ("clients.speed_spread=-1", "clients.speed_spread: input should be greater than or"),
        ("clients.flops_per_second=0", "clients.flops_per_second: input should be greater"),
        (
            "init.public=0.5 evaluation.validation=0.5",
            "init.public and evaluation.validation leave no images",
        ),
        ("evaluation.validation=1", "evaluation.validation: input should be less than 1"),
    ],
)
def test_systems_that_cannot_be_are_one_line(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides.split())
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
