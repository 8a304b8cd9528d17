"""Keys of random draws."""

from __future__ import annotations

import pytest

from fedwsa import seeding


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**40 + 3, 2**100 + 1])
@pytest.mark.parametrize("parts", [(), (3,), (3, 5), (1, 2, 3, 4)])
def test_many_keys_at_once_are_those_one_by_one(seed: int, parts: tuple[int, ...]) -> None:
    numbers = range(5, 40)
    many = seeding.keys(seed, "some purpose", *parts, numbers)
    assert many.tolist() == [seeding.key(seed, "some purpose", *parts, k) for k in numbers]
