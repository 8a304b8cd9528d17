"""Intervals, paired tests and Holm's correction, against hand derivations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.reports.statistics import holm, interval, paired


def test_an_interval_is_students() -> None:
    # 1, 2, 3: mean 2, standard deviation 1, so half = t(0.975; 2) / √3. With 2 degrees of freedom
    # P(T ≤ t) = 1/2 + t / (2 √(2 + t²)), which is 0.975 at t = √(2·0.95² / (1 - 0.95²)).
    t = math.sqrt(2 * 0.95**2 / (1 - 0.95**2))
    assert t == pytest.approx(4.303, abs=1e-3)  # as tables have it
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(t / math.sqrt(3), rel=1e-9)


def test_one_value_has_no_interval_and_one_pair_no_test() -> None:
    mean, half = interval([0.7])
    assert (mean, math.isnan(half)) == (0.7, True)
    one = paired([0.7], [0.5])
    assert one.difference == pytest.approx(0.2)
    assert all(map(math.isnan, (one.half, one.p_t, one.p_wilcoxon)))


def test_the_paired_t_test_is_that_of_the_differences() -> None:
    # Differences 1, 2, 3: t = 2 / (1/√3) = √12 with 2 degrees of freedom, so that two-sided
    # p = 1 - t / √(2 + t²) = 1 - √(12/14). How far the pairs lie apart does not matter.
    found = paired([11.0, 102.0, 3.0], [10.0, 100.0, 0.0])
    assert (found.pairs, found.difference) == (3, 2.0)
    assert found.p_t == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9)
    assert math.isnan(found.p_wilcoxon)  # not with three pairs


def test_the_signed_rank_test_counts_signs_and_ranks_exactly() -> None:
    # All 8 differences positive: of 2⁸ equally likely sign patterns only this one and its mirror
    # are as extreme. With the smallest negative, two patterns have a rank sum of at most 1: 4/2⁸.
    gains = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    assert paired(gains, np.zeros(8)).p_wilcoxon == pytest.approx(2 / 2**8)
    gains[0] = -1
    assert paired(gains, np.zeros(8)).p_wilcoxon == pytest.approx(4 / 2**8)


def test_with_ties_the_signed_rank_test_is_scipys() -> None:
    draws = np.random.default_rng(0)
    for pairs in (8, 9, 10, 13, 14):
        differences = draws.integers(-3, 6, pairs).astype(float)
        found = paired(differences, np.zeros(pairs)).p_wilcoxon
        assert found == pytest.approx(stats.wilcoxon(differences).pvalue, abs=1e-12)


def test_equal_runs_say_nothing_against_being_equal() -> None:
    same = paired([0.1] * 9, [0.1] * 9)
    assert (same.difference, same.p_t, same.p_wilcoxon) == (0.0, 1.0, 1.0)


def test_a_gain_without_spread_is_not_judged() -> None:
    # Two seeds of a small test set easily gain the same: t would be infinite, and bold.
    gain = paired([0.6, 0.7], [0.5, 0.6])
    assert gain.difference == pytest.approx(0.1)
    assert math.isnan(gain.p_t)


def test_pairs_need_partners() -> None:
    with pytest.raises(ValueError, match="as many values of both"):
        paired([1.0, 2.0], [1.0])


def test_holm_multiplies_the_smallest_most() -> None:
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06, 0.04; the last may not be below 0.06.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_what_was_not_tested_is_not_of_the_family() -> None:
    first, missing, last = holm([0.01, math.nan, 0.02])
    assert (first, last) == pytest.approx((0.02, 0.02))
    assert math.isnan(missing)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    for i, (own, new) in enumerate(zip(p, corrected, strict=True)):
        assert own <= new <= max(min(1.0, own * len(p)), *corrected[:i], *corrected[i + 1 :], 0)
        assert new <= 1
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
    if p:
        assert min(corrected) == pytest.approx(min(1.0, min(p) * len(p)))


def test_without_any_difference_a_family_errs_in_five_percent_of_studies() -> None:
    # 1200 studies of 5 comparisons over 5 seeds, nothing to be found. With independent tests the
    # family error of Holm is 1 - (1 - 0.05/5)⁵ = 0.049; its standard error here 0.0062. Without
    # correction it would be 1 - 0.95⁵ = 0.23.
    random = np.random.default_rng(0)
    studies, wrong, uncorrected = 1200, 0, 0
    for _ in range(studies):
        seeds = random.normal(size=5)  # what the two of a pair have in common
        values = seeds + random.normal(size=(5, 2, 5))
        p = [paired(one, other).p_t for one, other in values]
        wrong += min(holm(p)) < 0.05
        uncorrected += min(p) < 0.05
    assert 0.03 < wrong / studies < 0.07
    assert uncorrected / studies > 0.18
