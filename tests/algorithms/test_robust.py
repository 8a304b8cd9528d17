"""Robust averages: where they are the mean, the median, and how far liars can move them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg

from experiments.commands.simulate import simulate
from fedwsa.algorithms.fedexp.server import extrapolated
from fedwsa.algorithms.robust.rules import (
    clipped_around,
    conquered,
    geometric_median,
    trusted,
)
from fedwsa.algorithms.robust.server import (
    CentredClipping,
    DivideAndConquer,
    GeometricMedian,
    NormClipping,
    RobustAverage,
)
from fedwsa.config.component import ConfigError
from fedwsa.schema.compose import compose
from tests.given.quadratics import Exact, app, run

RANDOM = torch.Generator().manual_seed(0)
POINTS = torch.randn(9, 6, generator=RANDOM, dtype=torch.float64)
ONES = torch.ones(9, dtype=torch.float64)
WEIGHTS = torch.rand(9, generator=RANDOM, dtype=torch.float64) + 0.5
ALL = {"fraction_evaluate": 0.0, "min_train_nodes": 3, "min_available_nodes": 3}


def test_smoothed_beyond_all_distances_the_geometric_median_is_the_mean() -> None:
    found = geometric_median(POINTS, WEIGHTS, 1e6, 5)
    torch.testing.assert_close(found, WEIGHTS @ POINTS / WEIGHTS.sum())


def test_on_a_line_it_is_the_median() -> None:
    line = torch.tensor([[0.0], [1.0], [5.0], [70.0], [900.0]], dtype=torch.float64)
    found = geometric_median(line, torch.ones(5, dtype=torch.float64), 1e-9, 2000)
    assert float(found) == pytest.approx(5.0, abs=1e-3)


def test_the_weighted_directions_to_all_points_cancel_there() -> None:
    found = geometric_median(POINTS, WEIGHTS, 1e-12, 3000)
    apart = POINTS - found
    pull = WEIGHTS @ (apart / apart.norm(dim=1, keepdim=True))
    assert float(pull.norm()) < 1e-6


@pytest.mark.parametrize("far", [1e2, 1e4, 1e6])
def test_four_of_nine_cannot_move_it_far(far: float) -> None:
    """‖v‖ ≤ 2(1 − ε)/(1 − 2ε)·max‖u‖, ε the liars' share: triangle inequalities at the optimum."""
    points = POINTS.clone()
    points[:4] = far
    found = geometric_median(points, ONES, 1e-9, 3000)
    share, largest = 4 / 9, float(points[4:].norm(dim=1).max())
    assert float(found.norm()) <= 2 * (1 - share) / (1 - 2 * share) * largest
    assert float(points.mean(0).norm()) > 0.4 * far


def test_a_wide_radius_gives_the_mean_around_any_centre() -> None:
    centre = torch.full((6,), 3.0, dtype=torch.float64)
    found = clipped_around(POINTS, WEIGHTS, centre, 1e9)
    torch.testing.assert_close(found, WEIGHTS @ POINTS / WEIGHTS.sum())


def test_one_of_k_moves_a_clipped_mean_by_no_more_than_the_radius_by_k() -> None:
    centre, radius = torch.zeros(6, dtype=torch.float64), 1.5
    liar = POINTS.clone()
    liar[0] = 1e6
    with_liar = clipped_around(liar, ONES, centre, radius)
    liar[0] = 0.0
    without = clipped_around(liar, ONES, centre, radius)
    assert float((with_liar - without).norm()) == pytest.approx(radius / 9)


def test_clipping_again_and_again_ends_where_the_clipped_directions_cancel() -> None:
    centre = clipped_around(POINTS, ONES, torch.zeros(6, dtype=torch.float64), 0.8, 4000)
    apart = POINTS - centre
    factors = (0.8 / apart.norm(dim=1)).clamp_max(1.0)
    assert float((factors @ apart).norm()) < 1e-6


def test_those_that_stand_out_in_one_direction_are_found() -> None:
    points = 0.1 * POINTS
    points[[2, 5]] += torch.tensor([0.0, 4.0, 0.0, 4.0, 0.0, 0.0])
    left = conquered(points, 2, 6, 1, torch.Generator())
    assert left.nonzero().flatten().tolist() == [0, 1, 3, 4, 6, 7, 8]
    assert bool(conquered(points, 0, 6, 1, torch.Generator()).all())


@pytest.mark.parametrize(
    "strategy",
    [
        GeometricMedian(smoothing=1e9, iterations=2, weighted="examples", **ALL),
        CentredClipping(radius=1e9, iterations=1, weighted="examples", **ALL),
        NormClipping(norm=1e9, noise=0.0, weighted="examples", **ALL),
        DivideAndConquer(
            num_malicious_nodes=0, entries=9, iterations=1, weighted="examples", **ALL
        ),
    ],
    ids=lambda s: type(s).__name__,
)
def test_each_has_a_limit_that_is_fedavg(strategy: RobustAverage) -> None:
    models, _ = run(strategy, app(Exact(0.5)), 1, 3)
    expected, _ = run(FedAvg(**ALL), app(Exact(0.5)), 1, 3)
    np.testing.assert_allclose(models, expected, rtol=1e-5, atol=1e-6)


def test_the_next_centre_is_where_the_last_round_went() -> None:
    strategy = CentredClipping(radius=0.5, iterations=1, weighted="clients")
    for _ in range(40):  # half a unit of three a round, until all are within the radius
        found = strategy.combine(torch.full((3, 4), 5.0), torch.ones(3))
    torch.testing.assert_close(found, torch.full((4,), 5.0))
    assert CentredClipping(radius=0.5, iterations=1, weighted="clients").combine(
        torch.full((3, 4), 5.0), torch.ones(3)
    ).norm() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (GeometricMedian, {"smoothing": 0.0, "iterations": 3}),
        (CentredClipping, {"radius": -1.0, "iterations": 1}),
        (NormClipping, {"norm": 0.0, "noise": 0.0}),
        (DivideAndConquer, {"num_malicious_nodes": -1, "entries": 9, "iterations": 1}),
    ],
)
def test_settings_of_no_meaning_are_refused(kind, wrong) -> None:
    with pytest.raises(ValueError, match="must be"):
        kind(weighted="examples", **wrong)


def test_fedexp_goes_further_where_updates_cancel_each_other() -> None:
    alike = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    one = torch.ones(2)
    assert extrapolated(alike, one, 0.0).tolist() == [1.0, 2.0]  # never shorter than FedAvg
    apart = torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    # mean 1, mean of squares 5: η = 5/2, with the weights (1, 3) 3 and 0: no way at all.
    assert extrapolated(apart, one, 0.0).tolist() == [2.5, 0.0]
    assert extrapolated(apart, one, 1.5).tolist() == [1.0, 0.0]
    assert extrapolated(apart, torch.tensor([1.0, 3.0]), 0.0).tolist() == [0.0, 0.0]
    # Of M clients that each move a weight of their own, M/2 times the mean: half of the way.
    way = torch.tensor([1.0, -2.0, 0.5, 3.0])
    torch.testing.assert_close(extrapolated(torch.diag(way), torch.ones(4), 0.0), way / 2)


def test_updates_count_as_far_as_they_go_where_the_server_s_goes() -> None:
    root = torch.tensor([3.0, 4.0])
    same, turned = root * 100, torch.tensor([-4.0, 3.0])
    assert trusted(torch.stack([same, -same, turned]), root).tolist() == pytest.approx([3.0, 4.0])
    assert trusted(torch.stack([-same, turned]), root).tolist() == [0.0, 0.0]
    # Two of cosine 1 and 0.6, both as long as the server's: (1·(3, 4) + 0.6·(5, 0)) / 1.6.
    found = trusted(torch.stack([root, torch.tensor([0.1, 0.0])]), root)
    assert found.tolist() == pytest.approx([6.0 / 1.6, 4.0 / 1.6])


def test_fltrust_learns_where_most_clients_lie(tmp_path: Path) -> None:
    words = ["clients.count=10", "rounds=6", "init.public=0.1", "partition=iid", "local.epochs=2"]
    attack = ["attack=sign_flip", "attack.share=0.7", "attack.scale=5", f"cache_dir={tmp_path}/c"]
    found = {
        name: simulate(compose([*words, *attack, f"strategy={name}"]), tmp_path / name)["accuracy"]
        for name in ("fedavg", "fltrust")
    }
    assert found["fedavg"] < 0.3
    assert found["fltrust"] > 0.7
    with pytest.raises(ConfigError, match=r"FLTrust trains on public examples .* set init.public"):
        simulate(compose(["strategy=fltrust", f"cache_dir={tmp_path}/c"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
