"""Severity figures, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance_nd

from fedwsa.data.severity import earth_movers, gini, jensen_shannon, severity

TABLES = st.integers(2, 6).flatmap(
    lambda classes: st.lists(
        st.lists(st.integers(0, 50), min_size=classes, max_size=classes).filter(any),
        min_size=1,
        max_size=8,
    )
)


def test_clients_alike_have_no_skew_whatever_their_sizes() -> None:
    found = severity([[10, 30, 60], [1, 3, 6], [100, 300, 600]])
    assert found["jensen_shannon"] == pytest.approx(0, abs=1e-12)
    assert found["earth_movers"] == pytest.approx(0, abs=1e-12)
    # Sizes 10, 100, 1000: (|10-100| + |10-1000| + |100-1000|) x 2 / (2 x 3 x 1110) = 3960/6660.
    assert found["gini"] == pytest.approx(3960 / 6660)


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_one_class_a_client_has_the_known_values(classes: int) -> None:
    counts = 7 * np.eye(classes)
    # A client would have to change all its samples but the 1/C of its own class.
    assert earth_movers(counts) == pytest.approx(1 - 1 / classes)
    # m is (1 + 1/C)/2 at the own class and 1/(2C) elsewhere; JSD = H(m) - H(p_k)/2 - H(p)/2 with
    # H(p_k) = 0 and H(p) = log2 C.
    own, other = (1 + 1 / classes) / 2, 1 / (2 * classes)
    mixed = -own * np.log2(own) - (classes - 1) * other * np.log2(other)
    assert jensen_shannon(counts) == pytest.approx(mixed - np.log2(classes) / 2)
    assert gini(counts.sum(1)) == pytest.approx(0)


def test_two_clients_of_one_class_each_by_numbers() -> None:
    # m = (3/4, 1/4): H = 3/4 log2(4/3) + 1/4 log2 4 = 0.311278 + 0.5; less 1/2.
    assert jensen_shannon([[4, 0], [0, 4]]) == pytest.approx(0.311278, abs=1e-6)
    assert earth_movers([[4, 0], [0, 4]]) == pytest.approx(0.5)


def test_one_client_with_everything_has_the_largest_gini() -> None:
    assert gini([0, 0, 0, 12]) == pytest.approx(3 / 4)
    assert gini([5]) == pytest.approx(0)


@given(TABLES)
def test_figures_are_those_of_scipy_and_of_their_definitions(table: list[list[int]]) -> None:
    counts = np.array(table, dtype=float)
    own, everyone = counts / counts.sum(1, keepdims=True), counts.sum(0) / counts.sum()
    distances = [jensenshannon(p, everyone, base=2) for p in own]
    # The square root of a rounding error is not small.
    assert jensen_shannon(counts) == pytest.approx(np.mean(np.square(distances)), abs=1e-7)
    sizes = counts.sum(1)
    pairs = np.abs(sizes[:, None] - sizes).sum()
    assert gini(sizes) == pytest.approx(pairs / (2 * len(sizes) * sizes.sum()), abs=1e-12)


@given(TABLES)
def test_earth_movers_is_the_transport_between_classes_that_are_equally_far_apart(
    table: list[list[int]],
) -> None:
    counts = np.array(table[:2], dtype=float)
    own, everyone = counts / counts.sum(1, keepdims=True), counts.sum(0) / counts.sum()
    corners = np.eye(counts.shape[1]) / np.sqrt(2)  # a simplex with sides of length 1
    costs = [wasserstein_distance_nd(corners, corners, p, everyone) for p in own]
    assert earth_movers(counts) == pytest.approx(np.mean(costs), abs=1e-6)


@given(TABLES, st.randoms())
def test_the_order_of_clients_and_classes_does_not_matter(table, random) -> None:
    counts = np.array(table)
    clients, classes = list(range(len(counts))), list(range(counts.shape[1]))
    random.shuffle(clients)
    random.shuffle(classes)
    mixed = severity(counts[np.ix_(clients, classes)])
    assert mixed == pytest.approx(severity(counts), abs=1e-12)
