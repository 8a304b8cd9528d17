"""Replies that are averaged in one piece: as one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedwsa.algorithms.guard.replies import Rules
from fedwsa.algorithms.partial_average import PartialAverage, WeightedMean
from fedwsa.algorithms.wsa.client import ScopeAlignment
from fedwsa.algorithms.wsa.instruction import ScopeInstruction
from fedwsa.scope.weight_scope import WeightScope
from fedwsa.simulation import CohortReply
from fedwsa.wire import messages

COUNT = 5
SHAPES = {"a": (3, 4), "b": (), "steps": ()}


def sent(**more: object) -> RecordDict:
    state = {"a": torch.zeros(3, 4), "b": torch.zeros(()), "steps": torch.tensor(0)}
    return RecordDict({"arrays": messages.to_arrays(state), **more})


def replies(rows: list[int] | None = None) -> CohortReply:
    draw = torch.Generator().manual_seed(0)
    order = range(COUNT) if rows is None else [rows.index(place) for place in range(COUNT)]
    each = [
        {"a": torch.randn(3, 4, generator=draw), "b": torch.randn((), generator=draw)}
        | {"steps": torch.tensor(k)}
        for k in range(COUNT)
    ]
    arrays = {name: torch.stack([each[k][name] for k in order]) for name in SHAPES}
    metrics = [
        {"num-examples": k + 1, "loss": 0.5 * k, "each": [1.0 * k, 2.0]} for k in range(COUNT)
    ]
    return CohortReply(arrays, metrics, rows)


def both(
    stack: CohortReply, content: RecordDict, rules: Rules | None = None
) -> tuple[PartialAverage, PartialAverage]:
    """Averages of the replies one by one, and in one piece; what is refused is the same."""
    alone, whole = (WeightedMean(rules or Rules()).begin() for _ in range(2))
    said = [alone.add(stack.content(k), content) for k in range(len(stack))]
    assert whole.add_stack(stack, content) == said
    return alone, whole


def alike(alone: PartialAverage, whole: PartialAverage) -> RecordDict:
    """What both average to."""
    one, other = alone.content(), whole.content()
    assert one is not None
    assert other is not None
    assert list(one) == list(other)
    tensors = [messages.to_tensors(c["arrays"]) for c in (one, other)]
    torch.testing.assert_close(*tensors)
    assert one["metrics"].keys() == other["metrics"].keys()
    for key, value in one["metrics"].items():
        assert other["metrics"][key] == pytest.approx(value)
        assert isinstance(other["metrics"][key], type(value))
    return other


@pytest.mark.parametrize("rows", [None, [3, 0, 4, 1, 2]])
def test_a_stack_is_averaged_as_its_replies(rows: list[int] | None) -> None:
    alone, whole = both(replies(rows), sent())
    content = alike(alone, whole)
    # Weights 1 … 5: Σ k (k + 1) / 15 = 40 / 15.
    assert float(messages.to_tensors(content["arrays"])["steps"]) == pytest.approx(40 / 15)
    assert content["metrics"]["num-examples"] == 15


@pytest.mark.parametrize("rows", [None, [3, 0, 4, 1, 2]])
def test_what_cannot_be_averaged_is_left_out_of_a_stack_alone(rows: list[int] | None) -> None:
    stack = replies(rows)
    stack.arrays["a"][stack.row(1), 0, 0] = torch.nan
    stack.arrays["b"][stack.row(2)] = 1e30
    stack.metrics[3]["num-examples"] = -1
    content = alike(*both(stack, sent()))
    # Clients 0 and 4 are left, with weights 1 and 5.
    assert content["metrics"]["num-examples"] == 6
    assert content["metrics"]["loss"] == pytest.approx(5 * 2.0 / 6)


def test_other_metrics_than_those_of_the_first_are_refused_and_its_own_if_it_is_refused() -> None:
    stack = replies()
    stack.metrics[0]["num-examples"] = 0
    stack.metrics[0]["own"] = 1.0
    stack.metrics[2]["own"] = 1.0
    content = alike(*both(stack, sent()))
    # Clients 1, 3 and 4 are left: the first is refused itself, the third says more than others.
    assert content["metrics"]["num-examples"] == 2 + 4 + 5
    assert "own" not in content["metrics"]


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("b"),
        lambda arrays: arrays.update(a=arrays["a"].double()),
        lambda arrays: arrays.update(a=arrays["a"][:, :2]),
        lambda arrays: arrays.update(a=torch.full_like(arrays["a"], torch.inf)),
    ],
)
def test_a_stack_that_is_wrong_as_a_whole_adds_nothing(change) -> None:
    stack = replies()
    change(stack.arrays)
    alone, whole = both(stack, sent())
    assert alone.content() is whole.content() is None


def test_two_stacks_and_a_reply_add_up() -> None:
    first, second = replies(), replies([4, 3, 2, 1, 0])
    alone, whole = both(first, sent())
    for average in (alone, whole):
        assert average.add(second.content(0), sent()) is None
    assert whole.add_stack(second, sent()) == [None] * COUNT
    for k in range(COUNT):
        assert alone.add(second.content(k), sent()) is None
    alike(alone, whole)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("rows", [None, [3, 0, 4, 1, 2]])
def test_scopes_are_judged_as_one_by_one(normalise: bool, rows: list[int] | None) -> None:
    stack = replies(rows)
    scope = WeightScope.measure({"a": torch.randn(3, 4)})
    instruction = ScopeInstruction(scope, strength=1.0, normalise=normalise)
    records = instruction.to_records()
    target = {name: MetricRecord(record) for name, record in records.items() if name != "config"}
    content = sent(config=ConfigRecord(records["config"]), **target)
    for k, said in enumerate(stack.metrics):
        model = {"a": stack.arrays["a"][stack.row(k)]}
        said.update(ScopeAlignment(model, as_objectives_see(content)).end())
    alike(*both(stack, content))
    stack.metrics[1]["wsa-mean"] = [stack.metrics[1]["wsa-mean"][0] + 0.1]  # not of its array
    stack.metrics[2].pop("wsa-kl")
    stack.arrays["a"][stack.row(3)] *= 1.1
    alone, whole = both(stack, content)
    alike(alone, whole)
    assert sum(p is not None for p in WeightedMean(Rules()).begin().add_stack(stack, content)) == 3


def as_objectives_see(content: RecordDict) -> dict:
    return {k: messages.to_tensors(r) if k == "arrays" else r for k, r in content.items()}


def test_pieces_are_joined_in_the_order_of_the_clients() -> None:
    whole = replies()
    parts = [[4, 1], [0], [3, 2]]
    pieces = [
        CohortReply(
            {name: t[[own[-1], *own[:-1]]] for name, t in whole.arrays.items()},
            [whole.metrics[k] for k in own],
            [*range(1, len(own)), 0],
        )
        for own in parts
    ]
    joined = CohortReply.joined(pieces, [k for own in parts for k in own])
    for k in range(COUNT):
        one, other = (messages.to_tensors(of.content(k)["arrays"]) for of in (whole, joined))
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert joined.metrics[k] == whole.metrics[k]
