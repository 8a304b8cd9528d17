"""The partition functions: against flwr-datasets, and by what each is named for."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwsa.config.component import Component, ConfigError
from fedwsa.data import by_size, partitioners
from fedwsa.data.partition import Facts, Shares, leaves_out, make_shares

LABELS = np.random.default_rng(0).integers(0, 10, 2000)
PIXELS = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2000, 1, 4, 4), np.uint8))
FACTS: Facts = {"pixels": lambda: PIXELS}


def part(name: str, **arguments: object) -> Component:
    room = "by_size" if hasattr(by_size, name) else "partitioners"
    return Component.of(f"fedwsa.data.{room}.{name}", **arguments)


def by_flower(partitioner: Any, labels: np.ndarray, clients: int, seed: int, **columns: Any) -> Any:
    """The shares that flwr-datasets makes of the data in the order that is ours."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    order = np.random.default_rng(seed).permutation(len(labels))
    columns = {"label": labels, "index": np.arange(len(labels)), **columns}
    partitioner.dataset = Dataset.from_dict({k: v[order] for k, v in columns.items()})
    with warnings.catch_warnings(action="ignore"):
        return [np.sort(partitioner.load_partition(i)["index"][:]) for i in range(clients)]


def assert_same(made: Shares, expected: Sequence[np.ndarray]) -> None:
    assert len(made) == len(expected)
    for ours, theirs in zip(made, expected, strict=True):
        assert np.array_equal(np.sort(ours), theirs)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 1000),
    clients=st.integers(1, 25),
    alpha=st.sampled_from([0.3, 1.0, 100.0]),
    samples=st.integers(200, 400),
)
def test_dirichlets_are_those_of_flwr_datasets(
    seed: int, clients: int, alpha: float, samples: int
) -> None:
    from flwr_datasets.partitioner import DirichletPartitioner, InnerDirichletPartitioner

    labels = LABELS[:samples]
    theirs = DirichletPartitioner(clients, "label", alpha, 1, False, seed=seed)
    made = partitioners.dirichlet(labels, clients, seed, alpha=alpha, min_size=1)
    assert_same(made, by_flower(theirs, labels, clients, seed))
    sizes = [len(s) for s in np.array_split(np.arange(samples), clients)]
    inner = InnerDirichletPartitioner(sizes, "label", alpha, seed=seed)
    made = partitioners.inner_dirichlet(labels, clients, seed, alpha=alpha)
    assert_same(made, by_flower(inner, labels, clients, seed))


def test_dirichlet_draws_again_as_often_as_flwr_datasets_does() -> None:
    from flwr_datasets.partitioner import DirichletPartitioner

    def ours(seed: int) -> Shares | None:
        try:
            return partitioners.dirichlet(LABELS, 20, seed, alpha=0.3, min_size=42)
        except ValueError:
            return None

    def theirs(seed: int) -> Any:
        try:
            made = DirichletPartitioner(20, "label", 0.3, 42, False, seed=seed)
            return by_flower(made, LABELS, 20, seed)
        except ValueError:
            return None

    found = [(ours(seed), theirs(seed)) for seed in range(4)]
    assert {made is None for made, _ in found} == {True, False}
    for made, expected in found:
        assert (made is None) == (expected is None)
        if made is not None:
            assert_same(made, expected)


@settings(max_examples=6)
@given(seed=st.integers(0, 1000), clients=st.integers(10, 25), classes=st.integers(1, 10))
def test_pathological_is_that_of_flwr_datasets(seed: int, clients: int, classes: int) -> None:
    from flwr_datasets.partitioner import PathologicalPartitioner

    theirs = PathologicalPartitioner(clients, "label", classes, "first-deterministic", seed=seed)
    made = partitioners.pathological(LABELS, clients, seed, classes_per_client=classes)
    assert_same(made, by_flower(theirs, LABELS, clients, seed))


@pytest.mark.parametrize("seed", [0, 7])
def test_the_others_are_those_of_flwr_datasets(seed: int) -> None:
    from flwr_datasets import partitioner as flower

    made = by_size.iid(LABELS, 21, seed)
    assert_same(made, by_flower(flower.IidPartitioner(21), LABELS, 21, seed))
    # 2000 samples in 40 shards of 50: where they divide, nothing is lost there.
    made = partitioners.shards(LABELS, 20, seed, shards_per_client=2)
    shard = flower.ShardPartitioner(20, "label", 2, keep_incomplete_shard=True, seed=seed)
    assert_same(made, by_flower(shard, LABELS, 20, seed))
    values = partitioners.brightness(PIXELS)
    arguments = {"value": "fedwsa.data.partitioners.brightness", "pixels": PIXELS}
    made = partitioners.continuous(LABELS, 21, seed, strictness=0.7, **arguments)
    blurred = flower.ContinuousPartitioner(21, "value", 0.7, seed=seed)
    assert_same(made, by_flower(blurred, LABELS, 21, seed, value=values))
    weights = np.random.default_rng(seed).lognormal(0.0, 2.0, (10, 6))
    given_weights = flower.DistributionPartitioner(weights, 20, 3, "label", 4, seed=seed)
    options = {"classes_per_client": 3, "min_per_class": 4, "sigma": 0.0}
    made = partitioners.distribution(LABELS, 20, seed, weights=weights.tolist(), **options)
    assert_same(made, by_flower(given_weights, LABELS, 20, seed))
    sizes = [700, 200, 40]
    made = by_size.size(LABELS, 3, seed, sizes=sizes)
    assert_same(made, by_flower(flower.SizePartitioner(sizes), LABELS, 3, seed))


ALL: dict[str, dict[str, object]] = {
    "iid": {},
    "dirichlet": {"alpha": 0.5, "min_size": 5},
    "inner_dirichlet": {"alpha": 0.1},
    "extended_dirichlet": {"classes_per_client": 2, "alpha": 0.5, "min_per_class": 1},
    "pathological": {"classes_per_client": 2},
    "distribution": {"classes_per_client": 2, "min_per_class": 5, "sigma": 2.0, "weights": None},
    "shards": {"shards_per_client": 3},
    "continuous": {"strictness": 0.5, "value": "fedwsa.data.partitioners.brightness"},
    "linear": {},
    "square": {},
    "exponential": {"ratio": 20.0},
    "size": {"sizes": [150] + [100] * 17 + [50, 50]},
}


@pytest.mark.parametrize("name", ALL)
def test_no_sample_is_lost_or_doubled_and_a_seed_repeats(name: str) -> None:
    component, labels = part(name, **ALL[name]), LABELS[:1950]
    facts: Facts = {"pixels": lambda: PIXELS[:1950]}
    shares, again, other = (make_shares(component, labels, 10, 20, s, facts) for s in (0, 0, 1))
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(1950))
    assert_same(again, shares)
    assert any(not np.array_equal(a, b) for a, b in zip(shares, other, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_any_partition_of_labels_that_stand_sorted_holds(name: str) -> None:
    labels = np.sort(LABELS[:1950])
    facts: Facts = {"pixels": lambda: PIXELS[:1950]}
    shares = make_shares(part(name, **ALL[name]), labels, 10, 20, 0, facts)
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(1950))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 100),
    clients=st.integers(1, 30),
    each=st.integers(1, 10),
    least=st.integers(1, 3),
)
def test_extended_dirichlet_gives_each_client_its_number_of_classes(
    seed: int, clients: int, each: int, least: int
) -> None:
    component = part("extended_dirichlet", classes_per_client=each, alpha=0.05, min_per_class=least)
    if clients * each < 10:
        with pytest.raises(ConfigError, match="cannot hold 10 classes"):
            make_shares(component, LABELS, 10, clients, seed)
        return
    shares = make_shares(component, LABELS, 10, clients, seed)
    counts = np.array([np.bincount(LABELS[s], minlength=10) for s in shares])
    assert set((counts > 0).sum(1)) == {each}
    assert counts[counts > 0].min() >= least


def test_extended_dirichlet_shares_a_class_evenly_when_alpha_is_large_and_not_when_small() -> None:
    def spread(alpha: float) -> float:
        shares = partitioners.extended_dirichlet(
            LABELS, 20, 0, classes_per_client=3, alpha=alpha, min_per_class=1
        )
        counts = np.array([np.bincount(LABELS[s], minlength=10) for s in shares], dtype=float)
        held = [column[column > 0] for column in counts.T]
        return float(np.mean([column.std() / column.mean() for column in held]))

    # A share's coefficient of variation under Dir(alpha) of K holders is sqrt((K-1)/(K alpha+1)):
    # with K about 6, 0.03 at alpha 1000, and 1.9 at alpha 0.05.
    assert spread(1000.0) < 0.15 < 1.2 < spread(0.05)


def test_distribution_follows_its_weights() -> None:
    # Two classes of 100, four clients with both of them. All but the 4 x 5 preassigned samples
    # go by 1:1:2:4 and 8:0:0:0: 80 x (1, 1, 2, 4)/8 + 5 and (80 + 5, 5, 5, 5).
    labels = np.repeat([0, 1], 100)
    options = {"classes_per_client": 2, "min_per_class": 5, "sigma": 1.0}
    weights = [[1.0, 1.0, 2.0, 4.0], [8.0, 0.0, 0.0, 0.0]]
    shares = partitioners.distribution(labels, 4, 0, weights=weights, **options)
    counts = np.array([np.bincount(labels[s], minlength=2) for s in shares])
    assert counts[:, 0].tolist() == [15, 15, 25, 45]
    assert counts[:, 1].tolist() == [85, 5, 5, 5]


def test_continuous_sorts_by_the_value_when_strict_and_not_at_all_when_not() -> None:
    def means(strictness: float) -> list[float]:
        component = part("continuous", **{**ALL["continuous"], "strictness": strictness})
        shares = make_shares(component, LABELS, 10, 5, 0, FACTS)
        return [float(PIXELS[torch.from_numpy(s)].double().mean()) for s in shares]

    strict, loose = means(1.0), means(0.0)
    assert strict == sorted(strict)
    assert max(loose) - min(loose) < (max(strict) - min(strict)) / 5


def test_sizes_grow_with_the_square_and_are_those_that_are_given() -> None:
    # 1 + 4 + 9 + 16 = 30 parts of 300 samples.
    assert [len(s) for s in by_size.square(LABELS[:300], 4, 0)] == [10, 40, 90, 160]
    shares = make_shares(part("size", sizes=[30, 20, 10]), LABELS, 10, None, 0)
    assert [len(s) for s in shares] == [30, 20, 10]


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("linear", "square", "size")])
def test_a_thousand_clients_of_sixty_thousand_labels_take_at_most_1_5_seconds(name: str) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    pixels = torch.from_numpy(labels[:, None].astype(np.uint8))
    arguments = {**ALL[name], "alpha": 1.0} if name == "dirichlet" else ALL[name]
    start = time.process_time()
    shares = make_shares(part(name, **arguments), labels, 10, 1000, 0, {"pixels": lambda: pixels})
    assert time.process_time() - start <= 1.5
    assert len(shares) == 1000


def test_inner_dirichlet_stands_where_a_client_s_classes_run_out() -> None:
    # At so small an alpha a client wants one class alone, the others with probability exactly 0.
    shares = make_shares(part("inner_dirichlet", alpha=1e-4), LABELS, 10, 20, 0)
    assert {len(s) for s in shares} == {100}


def test_a_partition_of_labels_with_a_gap_is_one_of_the_classes_that_there_are() -> None:
    labels = np.where(LABELS == 4, 5, LABELS)
    for name in ("inner_dirichlet", "extended_dirichlet", "pathological"):
        shares = make_shares(part(name, **ALL[name]), labels, 10, 20, 0)
        assert len(np.concatenate(shares)) == 2000


def halves(labels: np.ndarray, clients: int, seed: int) -> Shares:
    return list(np.array_split(np.arange(len(labels) // 2), clients))


def three(labels: np.ndarray, clients: int, seed: int) -> Shares:
    return list(np.array_split(np.arange(len(labels)), 3))


def outside(labels: np.ndarray, clients: int, seed: int) -> Shares:
    return list(np.array_split(np.arange(len(labels)) + 1, clients))


def double(labels: np.ndarray, clients: int, seed: int) -> Shares:
    return [np.arange(len(labels))] * clients


@leaves_out
def first_class(labels: np.ndarray, clients: int, seed: int) -> Shares:
    return list(np.array_split(np.flatnonzero(labels == 0), clients))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (halves, "1000 samples are at no client; a function that leaves some out on purpose"),
        (three, "made 3 shares for 5 clients"),
        (outside, "an index is outside of 0 … 1999"),
        (double, "some samples are at two clients"),
    ],
)
def test_what_a_stranger_s_function_makes_is_checked(function, message) -> None:
    component = Component.of(f"{__name__}.{function.__name__}")
    with pytest.raises(ConfigError, match=message):
        make_shares(component, LABELS, 10, 5, 0)


def test_who_leaves_samples_out_on_purpose_may_and_a_lost_class_is_a_warning(caplog) -> None:
    component = Component.of(f"{__name__}.first_class")
    shares = make_shares(component, LABELS, 10, 5, 0)
    assert set(LABELS[np.concatenate(shares)]) == {0}
    assert "no client has any sample of class [1, 2, 3, 4, 5, 6, 7, 8, 9]" in caplog.text


@pytest.mark.parametrize(
    ("component", "clients", "message"),
    [
        (part("iid"), None, r"clients\.count: partition=iid needs a number; null is for"),
        (part("size", sizes=[10, 20]), 3, r"3 clients, but partition\.sizes has 2"),
        (part("size", sizes=[1990, 20]), 2, r"partition\.sizes: add up to 2010; there are only 20"),
        (part("size", sizes=[10, 0]), 2, r"partition\.sizes\.1: input should be greater than 0"),
        (part("square"), 200, "of 200 clients would have no sample"),
        (
            part("distribution", **ALL["distribution"]),
            15,
            r"clients\.count: 15 is not a multiple of the 10 classes",
        ),
        (
            part("distribution", **{**ALL["distribution"], "weights": [[1.0, 2.0]]}),
            20,
            r"partition\.weights: needs 10 rows of 4 numbers",
        ),
        (
            part("distribution", **{**ALL["distribution"], "min_per_class": 100}),
            20,
            "class 0 would be at clients that need 400 samples of it; there are 1",
        ),
        (
            part("extended_dirichlet", **{**ALL["extended_dirichlet"], "classes_per_client": 11}),
            20,
            r"classes_per_client: 11 classes per client, but the data has only 10",
        ),
        (
            part("extended_dirichlet", classes_per_client=1, alpha=1e-3, min_per_class=0),
            200,
            "of 200 clients would have no sample",
        ),
        (part("continuous", strictness=1.5, value="x"), 20, r"partition\.strictness: .*less than"),
        (
            part("continuous", strictness=0.5, value="fedwsa.data.partitioners.darkness"),
            20,
            "fedwsa.data.partitioners has no darkness",
        ),
        (part("continuous", strictness=0.5, value="x", pixels=1), 20, "pixels: continuous has no"),
    ],
)
def test_partitions_that_cannot_be_are_refused_in_one_line(component, clients, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_shares(component, LABELS, 10, clients, 0, FACTS)
    assert "\n" not in str(caught.value)
