"""Means over seeds, paired differences and their tests: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

WILCOXON_FROM = 8
"""Pairs from which the signed-rank test is made: with fewer it can hardly reach 0.01 (for 7 the
smallest two-sided p-value is 2/2⁷ = 0.016, and corrected for four comparisons above 0.05)."""

_PERMUTED = 13  # pairs up to which scipy's signed-rank test is exact with ties too
_ROUNDING = 1e-9  # of differences of float64 numbers, in parts of the largest


def interval(values: ArrayLike) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t.

    Parameters
    ----------
    values
        (n,), independent.

    Returns
    -------
    mean, half : float
        ``half`` is NaN for fewer than two values.
    """
    numbers = np.asarray(values, dtype=float)
    if len(numbers) < 2:
        return float(np.mean(numbers)), math.nan
    half = stats.t.ppf(0.975, len(numbers) - 1) * stats.sem(numbers)
    return float(np.mean(numbers)), float(half)


@dataclass(frozen=True)
class Paired:
    """A paired comparison.

    Attributes
    ----------
    pairs : int
        How many.
    difference, half : float
        Mean of the differences, and half its 95 % interval.
    p_t : float
        Of the paired t-test, two-sided; NaN for fewer than two pairs, and for differences that are
        all the same but not zero: without any spread there is nothing to judge them by.
    p_wilcoxon : float
        Of the signed-rank test, two-sided; NaN below :data:`WILCOXON_FROM` pairs.
    """

    pairs: int
    difference: float
    half: float
    p_t: float
    p_wilcoxon: float


def paired(values: ArrayLike, baseline: ArrayLike) -> Paired:
    """Compare values with those of a baseline, pair by pair.

    Parameters
    ----------
    values, baseline
        (n,), n at least 1; the i-th of both belong together.

    Raises
    ------
    ValueError
        If there are not as many of both.
    """
    one, other = np.asarray(values, dtype=float), np.asarray(baseline, dtype=float)
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"pairs need as many values of both (got {one.shape} and {other.shape})")
    mean, half = interval(one - other)
    return Paired(len(one), mean, half, _t(one - other), _wilcoxon(one - other))


def _t(differences: NDArray[np.float64]) -> float:
    if len(differences) < 2:
        return math.nan
    if not differences.any():  # 0/0: equal runs say nothing against being equal
        return 1.0
    if np.ptp(differences) <= _ROUNDING * np.abs(differences).max():
        return math.nan
    return float(stats.ttest_rel(differences, np.zeros_like(differences)).pvalue)


def _wilcoxon(differences: NDArray[np.float64]) -> float:
    if len(differences) < WILCOXON_FROM:
        return math.nan
    if not differences.any():
        return 1.0
    nonzero = differences[differences != 0]
    sizes = stats.rankdata(np.abs(nonzero))
    if len(differences) > _PERMUTED or len(np.unique(sizes)) == len(differences):
        return float(stats.wilcoxon(differences).pvalue)
    # Ties: scipy counts all patterns of signs, and ranks anew for each; signs move no rank.
    signed = (np.sign(nonzero) * sizes,)
    found = stats.permutation_test(
        signed, np.sum, permutation_type="samples", n_resamples=2**_PERMUTED, vectorized=True
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for a family of tests, in their order.

    Rejecting where the result is at most α makes any false rejection in the family at most as
    likely as α, whatever the tests' dependence. Holm (1979), "A simple sequentially rejective
    multiple test procedure": the i-th smallest of m is multiplied by m - i + 1, and none may be
    below one that was smaller. NaN stands for no test: it is not of the family, and stays.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        corrected[i] = highest
    return corrected
