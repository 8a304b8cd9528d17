"""Averages of parts of a whole, against a plain loop over entries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwsa.algorithms.sizes.overlap import overlap
from fedwsa.models.architecture import first_units, rolled_by, selection, take, window

SHAPE = (4, 3)
PART = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9))


@given(st.lists(PART, min_size=1, max_size=4), st.integers(0, 5))
def test_each_entry_is_the_mean_of_the_parts_that_have_it(drawn, shift: int) -> None:
    torch.manual_seed(0)
    old = torch.randn(SHAPE)
    sums, weights, parts = torch.zeros(SHAPE), torch.zeros(SHAPE), []
    for rows, columns, weight in drawn:
        values = torch.randn(rows, columns)
        chosen = selection(SHAPE, values.shape, {}, rolled_by(shift))
        picked = [range(n) if i is None else i.tolist() for n, i in zip(SHAPE, chosen, strict=True)]
        for i, row in enumerate(picked[0]):
            for j, column in enumerate(picked[1]):
                sums[row, column] += weight * values[i, j]
                weights[row, column] += weight
        parts.append((values, float(weight), window(chosen, SHAPE)))
    expected = torch.where(weights > 0, sums / weights.clamp(min=1), old)
    torch.testing.assert_close(overlap(old, parts), expected)


def test_one_part_is_taken_over_to_the_bit() -> None:
    torch.manual_seed(0)
    whole, part = torch.randn(SHAPE), torch.randn(2, 2)
    chosen = selection(SHAPE, (2, 2), {}, rolled_by(3))
    result = overlap(whole, [(part, 7.0, window(chosen, SHAPE))])
    assert torch.equal(take(result, chosen), part)
    assert torch.equal(overlap(whole, [(2 * whole, 7.0, None)]), 2 * whole)


def test_a_prefix_is_a_slice_and_a_window_that_wraps_is_not() -> None:
    assert window([None, None], SHAPE) is None
    assert window(selection(SHAPE, (2, 3), {}, first_units), SHAPE) == (slice(0, 2), slice(None))
    assert all(
        isinstance(i, torch.Tensor)
        for i in window(selection(SHAPE, (2, 3), {}, rolled_by(3)), SHAPE)
    )
    assert window([], ()) is None  # a number has no dimension


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    old = torch.ones(SHAPE, dtype=dtype)
    half = (slice(0, 2), slice(None))
    mean = overlap(old, [((3 * old).double(), 1.0, None), (old[:2], 1.0, half)])
    assert mean.dtype == dtype
    assert mean.double().tolist() == [[2.0] * 3] * 2 + [[3.0] * 3] * 2
