"""Components as values: equal by path and arguments, keys of caches, copied with changes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedwsa.config.component import Component, ConfigError, asked_for, build
from fedwsa.schema.sections import Dataset

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    PLAIN, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3)
)
ARGUMENTS = st.dictionaries(st.text(min_size=1).filter(lambda k: k != "_target_"), VALUES)


def again(value: Any, order: int = 1) -> Any:
    """A copy, with the keys of all mappings in another order where that is -1."""
    if isinstance(value, dict):
        return {key: again(each, order) for key, each in list(value.items())[::order]}
    return [again(each, order) for each in value] if isinstance(value, list) else value


@given(ARGUMENTS)
def test_equal_components_are_one_key(arguments: dict[str, Any]) -> None:
    one, two = (Component.of("a.b", **again(arguments, order)) for order in (1, -1))
    assert one == two
    assert hash(one) == hash(two)
    assert one.arguments == arguments
    assert one != Component.of("a.c", **arguments)


@given(ARGUMENTS, ARGUMENTS)
def test_replaced_arguments_are_those_of_both_the_new_ones_first(before, after) -> None:
    component = Component.of("a.b", **before)
    replaced = component.replace(**after)
    assert replaced == Component.of("a.b", **{**before, **after})
    assert list(replaced.arguments) == list({**before, **after})
    assert component.arguments == before  # as it was
    assert component.replace() == component


def test_a_cache_tells_components_apart_by_their_arguments() -> None:
    asked = []
    remember = lru_cache(asked.append)
    for hidden in ([1, {"a": 2}], [1, {"a": 2}], [1, {"a": 3}]):
        remember(Component.of("a.b", hidden=hidden))
    assert [c.arguments["hidden"][1]["a"] for c in asked] == [2, 3]


def test_one_and_true_are_other_arguments() -> None:
    kinds = [Component.of("a.b", depth=depth) for depth in (1, 1.0, True, [1], [True])]
    assert len(set(kinds)) == len(kinds)


def test_a_section_with_keys_of_its_own_keeps_its_kind() -> None:
    data = Dataset.of("a.b", augment="none", path="x")
    flipped = data.replace(augment="crop_flip", path="y")
    assert type(flipped) is Dataset
    assert (flipped.augment, flipped.arguments) == ("crop_flip", {"path": "y"})
    assert len({data, flipped, data.replace()}) == 2
    with pytest.raises(ValidationError, match="augment"):
        data.replace(augment="none of them")


def shortened(layers: list[int]) -> list[int]:
    layers.pop()
    return layers


def untold(layers) -> list[int]:
    return shortened(layers)


@pytest.mark.parametrize("builder", [shortened, untold])
def test_what_a_builder_does_to_its_arguments_is_its_own_matter(builder) -> None:
    component = Component.of(f"{__name__}.{builder.__name__}", layers=[1, 2, 3])
    key = hash(component)
    assert build(component, "model") == build(component, "model") == [1, 2]
    assert component.arguments == {"layers": [1, 2, 3]}
    assert hash(component) == key


def test_what_is_asked_for_is_what_a_signature_names() -> None:
    assert asked_for(untold, ["ids", "layers"], "model") == ["layers"]
    assert asked_for(lambda **options: options, ["ids"], "model") == []
    with pytest.raises(ConfigError, match="model: type does not say which arguments it takes"):
        asked_for(type, ["ids"], "model")
