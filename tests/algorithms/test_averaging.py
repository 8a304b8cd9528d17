"""The partial averages of workers, which together are the average of all."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fedwsa.algorithms.guard.replies import Rules
from fedwsa.algorithms.partial_average import PartialAverage
from tests.given.fedwsa import Nodes

pytestmark = pytest.mark.usefixtures("task_identity")

RULES = Rules("num-examples", ("loss",))


def content(values: list[float], examples: int, loss: float, dtype: str = "float32") -> RecordDict:
    arrays = {
        "w": Array(np.array(values, dtype)),
        "count": Array(np.array(len(values) + examples, np.int64)),
    }
    metrics = {"num-examples": examples, "loss": loss, "list": [loss, -loss]}
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)})


def reply(given: RecordDict) -> Message:
    grid = Nodes(2)
    strategy = FedAvg(min_available_nodes=1)
    [first, *_] = strategy.configure_train(1, given["arrays"], ConfigRecord(), grid)
    return Message(given, reply_to=first)


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-8, 8, width=16), min_size=2, max_size=2),
            st.integers(1, 50),
            st.floats(0, 4, width=16),
        ),
        min_size=2,
        max_size=6,
    ),
    st.integers(1, 5),
)
def test_flower_averages_the_parts_to_the_average_of_all(clients, cut) -> None:
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    contents = [content(*c) for c in clients]
    parts = []
    for group in (contents[:cut], contents[cut:]):
        part = PartialAverage(RULES)
        for one in group:
            assert part.add(one, contents[0]) is None
        if (whole := part.content()) is not None:
            parts.append(whole)
    expected, metrics = FedAvg().aggregate_train(1, [reply(c) for c in contents])
    arrays, averaged = FedAvg().aggregate_train(1, [reply(p) for p in parts])
    for key in expected:
        np.testing.assert_allclose(arrays[key].numpy(), expected[key].numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(averaged["loss"], metrics["loss"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(averaged["list"], metrics["list"], rtol=1e-9, atol=1e-12)


def test_the_mean_is_weighted_and_the_weight_is_summed() -> None:
    part = PartialAverage(RULES)
    part.add(content([1.0, 0.0], 1, 4.0), content([0, 0], 1, 0))
    part.add(content([5.0, 8.0], 3, 0.0), content([0, 0], 1, 0))
    whole = part.content()
    np.testing.assert_array_equal(whole["arrays"]["w"].numpy(), [4.0, 6.0])
    assert whole["arrays"]["w"].dtype == "float32"
    assert dict(whole["metrics"]) == {"num-examples": 4, "loss": 1.0, "list": [1.0, -1.0]}
    assert isinstance(whole["metrics"]["num-examples"], int)


def test_half_precision_is_added_up_in_single() -> None:
    # 2048 + 1 is 2048 in float16: adding in it would lose every second client.
    part = PartialAverage(RULES)
    reference = content([0, 0], 1, 0, "float16")
    for _ in range(4096):
        part.add(content([1.0, 1.0], 1, 0.0, "float16"), reference)
    whole = part.content()["arrays"]["w"]
    assert whole.dtype == "float16"
    np.testing.assert_array_equal(whole.numpy(), [1.0, 1.0])


def test_what_does_not_go_with_the_others_is_left_out() -> None:
    part = PartialAverage(RULES)
    reference = content([0, 0], 1, 0)
    assert part.add(content([1.0, 1.0], 1, 1.0), reference) is None
    shorter = content([9.0, 9.0], 1, 1.0)
    shorter["metrics"]["list"] = [1.0]
    assert "not those of the other clients" in part.add(shorter, reference)
    double = content([9.0, 9.0], 1, 1.0)
    double["more"] = double["arrays"]
    assert "exactly one ArrayRecord" in part.add(double, reference)
    assert part.content()["arrays"]["w"].numpy().tolist() == [1.0, 1.0]
    assert PartialAverage(RULES).content() is None
