"""The line between two networks: barriers by hand, and BatchNorm's statistics on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedwsa.data.evaluation import Score
from fedwsa.merge.connectivity import Path, line, positions, rise, walk
from fedwsa.models.batch_norm import reestimate

ALPHAS = np.linspace(0, 1, 11)


def test_the_line_begins_with_one_model_and_ends_with_the_other_to_the_bit() -> None:
    a, b = ({"w": torch.randn(3, 4), "n": torch.tensor(i)} for i in (1, 2))
    assert torch.equal(line(a, b, 0.0)["w"], a["w"])
    assert torch.equal(line(a, b, 1.0)["w"], b["w"])
    torch.testing.assert_close(line(a, b, 0.25)["w"], 0.75 * a["w"] + 0.25 * b["w"])


def test_a_point_beyond_the_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        line({}, {}, 1.5)


def test_the_barrier_of_a_parabola() -> None:
    """v = α(1−α) + 2α: the line between its ends is 2α, so the rise is α(1−α) ≤ 1/4."""
    assert rise(ALPHAS, ALPHAS * (1 - ALPHAS) + 2 * ALPHAS) == pytest.approx(0.25)


def test_a_valley_is_no_barrier() -> None:
    assert rise(ALPHAS, 3 - ALPHAS * (1 - ALPHAS)) == 0.0
    assert rise(ALPHAS, 1 + 2 * ALPHAS) == pytest.approx(0.0, abs=1e-15)


def test_barriers_of_loss_and_accuracy_on_a_line_of_one_number() -> None:
    """L(w) = (1−w²)², with minima at ±1: at w = 0 it is 1. Accuracy 1 − L/2."""

    def score(state: dict) -> Score:
        loss = (1 - float(state["w"]) ** 2) ** 2
        return Score(1 - loss / 2, loss, 1)

    path = walk({"w": torch.tensor(-1.0)}, {"w": torch.tensor(1.0)}, score)
    assert len(path.alphas) == len(path.scores) == 11
    assert path.loss_barrier == pytest.approx(1.0)
    assert path.accuracy_barrier == pytest.approx(0.5)


def test_fewer_than_eleven_points_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        positions(10)
    with pytest.raises(ValueError, match="at least 11"):
        rise(ALPHAS[:10], ALPHAS[:10])
    with pytest.raises(ValueError, match="at least 11"):
        walk({}, {}, lambda state: Score(0, 0, 0), points=3)


def test_points_that_leave_out_an_end_are_refused() -> None:
    inside = np.linspace(0.1, 1, 11)
    with pytest.raises(ValueError, match="from 0 to 1"):
        rise(inside, inside)
    with pytest.raises(ValueError, match="from 0 to 1"):
        _ = Path(list(inside), [Score(0, 0, 1)] * 11).loss_barrier


def test_statistics_are_the_means_over_batches() -> None:
    """Two batches of two numbers: means 1 and 5, unbiased variances 2 and 8."""
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(1))
    model[1].running_mean.fill_(77.0)
    model.eval()
    batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [7.0]])]
    assert reestimate(model, batches)
    assert model[1].running_mean.item() == pytest.approx(3.0)
    assert model[1].running_var.item() == pytest.approx(5.0)


def test_modes_and_momentum_are_as_before() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=0.3), nn.BatchNorm1d(1), nn.Dropout())
    model.train()
    model[1].eval()
    reestimate(model, [torch.randn(4, 1)])
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert [model[0].momentum, model[1].momentum] == [0.3, 0.1]


def test_weights_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {k: v.clone() for k, v in model.named_parameters()}
    reestimate(model, [torch.randn(4, 2)])
    assert all(torch.equal(v, before[k]) for k, v in model.named_parameters())


def test_a_network_without_statistics_is_left_alone() -> None:
    def never():
        raise AssertionError("a batch was drawn")
        yield

    for model in (nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)):
        assert not reestimate(model, never())


def test_statistics_need_data() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        reestimate(nn.BatchNorm1d(2), [])
