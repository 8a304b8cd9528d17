"""Arrays that stay in memory are Flower's Arrays to everybody else."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from hypothesis import given
from hypothesis.extra import numpy as np_strategies

from fedwsa.wire import messages
from fedwsa.wire.arrays import MemoryArray, record_of, values

ARRAYS = np_strategies.arrays(
    np_strategies.floating_dtypes(endianness="=", sizes=(16, 32, 64))
    | np_strategies.integer_dtypes(endianness="="),
    np_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(ARRAYS)
def test_it_is_encoded_pickled_and_deflated_as_flower_s_own(array: np.ndarray) -> None:
    ours, flowers = MemoryArray(array), Array(array)
    assert (ours.dtype, ours.shape, ours.stype) == (flowers.dtype, flowers.shape, flowers.stype)
    assert ours.data == flowers.data
    restored = copy.deepcopy(ours)  # by the protocol that pickling uses
    assert type(restored) is Array
    assert restored.data == flowers.data
    assert ours.deflate() == flowers.deflate()
    assert ours.object_id == flowers.object_id


@given(ARRAYS)
def test_it_equals_what_holds_the_same(array: np.ndarray) -> None:
    ours, others = MemoryArray(array), [Array(array), Array(np.asarray(array, order="F"))]
    for other in [*others, MemoryArray(array.copy()), copy.copy(ours), copy.deepcopy(ours), ours]:
        assert ours == other
        assert other == ours
    record = record_of({"w": array})
    assert record == ArrayRecord({"w": Array(array)})
    assert RecordDict({"a": record}) == RecordDict({"a": record_of({"w": array.copy()})})


def test_it_differs_from_what_does_not() -> None:
    ours = MemoryArray(np.array([1.0, float("nan")]))
    plain = Array(ours.values)
    different = [
        Array(np.array([2.0, float("nan")])),
        Array(np.array([[1.0, float("nan")]])),
        Array(ours.values.astype(np.float32)),
        Array(ours.values.view(np.int64)),
        dataclasses.replace(plain, stype="other"),
        dataclasses.replace(plain, data=b"no array"),
        dataclasses.replace(plain, data=plain.data[:-1]),
    ]
    different += [MemoryArray(other.numpy()) for other in different[:4]]
    for other in different:
        assert ours != other
        assert other != ours
    assert ours == plain
    assert ours != "an array"
    with pytest.raises(TypeError, match="unhashable"):  # as Flower's
        hash(ours)


def test_a_field_of_it_is_replaced_as_flower_s() -> None:
    ours = MemoryArray(np.arange(3.0))
    replaced = dataclasses.replace(ours, shape=(3, 1))
    assert type(replaced) is Array
    assert replaced == dataclasses.replace(Array(np.arange(3.0)), shape=(3, 1))


@given(ARRAYS)
def test_values_are_those_that_flower_decodes(array: np.ndarray) -> None:
    for given_array in (array, np.asfortranarray(array)):
        for made in (Array(given_array), MemoryArray(given_array)):
            seen = values(made)
            assert seen.dtype == array.dtype
            np.testing.assert_array_equal(seen, array)


def test_values_are_shared_and_numpy_is_a_copy_to_write_into() -> None:
    source = np.arange(6.0).reshape(2, 3)
    ours = MemoryArray(source)
    assert np.shares_memory(values(ours), source)
    plain = Array(source)
    assert not values(plain).flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        values(ours)[0] = 7
    copy = ours.numpy()
    copy[0] = 7
    assert source[0, 0] == 0
    assert source.flags.writeable


def test_a_record_goes_through_tensors_both_ways() -> None:
    state = OrderedDict(a=torch.randn(2, 3), b=torch.tensor(1.5, dtype=torch.float64))
    record = messages.to_arrays(state)
    assert isinstance(record, ArrayRecord)
    back = messages.to_tensors(record)
    plain = record.to_torch_state_dict()
    for name, tensor in state.items():
        assert back[name].data_ptr() == tensor.data_ptr()
        assert torch.equal(plain[name], tensor)
        assert plain[name].data_ptr() != tensor.data_ptr()
    with_strides = record_of({"w": torch.randn(2, 3).T.numpy()})
    assert values(with_strides["w"]).flags.c_contiguous
