"""The test set of data that come in one piece."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwsa.config.component import ConfigError
from fedwsa.data.examples import Examples
from fedwsa.data.splits import held_out, in_two


@given(strata=st.lists(st.integers(0, 6), min_size=1, max_size=80), share=st.floats(0.01, 0.99))
def test_a_share_of_all_and_of_each_stratum_to_within_one(strata: list[int], share: float) -> None:
    numbers = torch.tensor(strata)
    chosen = held_out(numbers, share)
    assert int(chosen.sum()) == int(len(strata) * share)
    for stratum in set(strata):
        own = numbers == stratum
        assert abs(int(chosen[own].sum()) - float(own.sum()) * share) < 1 + 1e-9
    assert torch.equal(chosen, held_out(numbers, share))


def test_which_ones_is_drawn_and_not_the_last() -> None:
    chosen = held_out(torch.arange(1000) // 500, 0.1)
    assert [int(chosen[i : i + 500].sum()) for i in (0, 500)] == [50, 50]
    assert 20 <= int(chosen[:250].sum()) <= 30


def test_each_client_s_are_split_and_none_is_in_both() -> None:
    ids = torch.arange(60) % 3
    whole = Examples(torch.arange(60.0)[:, None, None], torch.zeros(60, dtype=torch.int64), ids)
    train, test = in_two(whole, 0.2)
    assert (len(train), len(test)) == (48, 12)
    both = torch.cat([train.inputs, test.inputs]).flatten().sort().values
    assert torch.equal(both, torch.arange(60.0))
    with pytest.raises(ConfigError, match=r"dataset.test=0.01: too little of 60 examples"):
        in_two(whole, 0.01)
