"""Values and arrays in two files: what is written comes back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedwsa.runfolder import state_files
from fedwsa.scope.weight_scope import WeightScope

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.integers() | st.text()
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_plain_values_come_back_as_they_were(value: object) -> None:
    arrays: dict[str, torch.Tensor] = {}
    tree = json.loads(json.dumps(state_files.encode(value, arrays)))
    assert state_files.decode(tree, arrays) == value


def test_arrays_and_records_come_back_as_they_were(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    tensor = torch.randn(3, 2, generator=random, dtype=torch.float64)
    scope = WeightScope.of(["a"], [0.5], [2.0])
    arrays = ArrayRecord({"w": Array(np.arange(3.0))})
    content = RecordDict({"arrays": arrays, "m": MetricRecord({"x": [1.0, 2.0]})})
    state = {
        "tensor": tensor,
        "nothing": torch.zeros(0),
        "numpy": {3: [np.arange(4, dtype=np.int32), np.float64(0.1)]},
        "scope": scope,
        "content": {7: content},
        "config": ConfigRecord({"k": "v", "n": 3}),
    }
    state_files.write(tmp_path / "deep" / "state", state)
    found = state_files.read(tmp_path / "deep" / "state")
    assert torch.equal(found["tensor"], tensor)
    assert found["nothing"].shape == (0,)
    array, number = found["numpy"][3]
    assert array.dtype == np.int32
    assert array.tolist() == [0, 1, 2, 3]
    assert number == 0.1
    assert (found["scope"].names, found["scope"].mean.tolist()) == (scope.names, [0.5])
    assert torch.equal(found["scope"].variance, scope.variance)
    assert found["content"][7]["arrays"]["w"].numpy().tolist() == [0.0, 1.0, 2.0]
    assert dict(found["content"][7]["m"]) == {"x": [1.0, 2.0]}
    assert dict(found["config"]) == {"k": "v", "n": 3}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["state"]
