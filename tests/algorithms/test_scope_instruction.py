"""What FedWSA tells its clients: the same after the wire, and on it as the page of names says."""

from __future__ import annotations

from typing import get_args

import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedwsa.algorithms.wsa.instruction import REPORTED, ScopeInstruction
from fedwsa.scope.weight_scope import Fusion, Reduction, WeightScope
from tests.given.fedwsa import content

NUMBERS = st.floats(-1e6, 1e6)
POSITIVE = st.floats(1e-9, 1e6)


@st.composite
def instructions(draw: st.DrawFn) -> ScopeInstruction:
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    size = len(names)
    mean, variance = (draw(st.lists(x, min_size=size, max_size=size)) for x in (NUMBERS, POSITIVE))
    return ScopeInstruction(
        WeightScope.of(names, mean, variance),
        strength=draw(st.floats(0, 1e6)),
        fusion=draw(st.sampled_from(get_args(Fusion))),
        reduction=draw(st.sampled_from(get_args(Reduction))),
        floor=draw(POSITIVE),
        normalise=draw(st.booleans()),
        partial=draw(st.booleans()),
        reported=draw(st.booleans()),
    )


@given(instructions(), st.booleans())
def test_what_is_read_is_what_was_written(told: ScopeInstruction, flower: bool) -> None:
    records = told.to_records()
    settings, target = records["config"], records["wsa-target"]
    if flower:  # as at the guard, in a record that a strategy has named otherwise
        sent = {"theirs": ConfigRecord({"x": 1, **settings}), "wsa-target": MetricRecord(target)}
        read = ScopeInstruction.from_content(RecordDict(sent))
    else:
        read = ScopeInstruction.from_content({"empty": {}, **records})
    assert read is not None
    assert read.to_records() == records
    assert read.target.names == told.target.names
    assert torch.equal(read.target.mean, told.target.mean)
    assert torch.equal(read.target.variance, told.target.variance)
    for name in ("strength", "fusion", "reduction", "floor", "normalise", "partial", "reported"):
        assert getattr(read, name) == getattr(told, name)


def test_a_message_has_the_names_that_clients_of_any_version_know() -> None:
    target = WeightScope.of(["0.weight", "2.weight"], [0.1, 0.1], [0.04, 0.04])
    assert ScopeInstruction(target, strength=1.0).to_records() == content()
    told = ScopeInstruction(target, 1.0, normalise=True, partial=True, reported=False)
    switches = {"wsa-normalise": True, "wsa-partial": True, "wsa-reported": False}
    assert told.to_records() == content(**switches)


def test_a_message_without_layers_asks_for_no_scopes() -> None:
    assert ScopeInstruction.from_content({}) is None
    assert ScopeInstruction.from_content({"config": {"server-round": 1}}) is None


def test_a_client_answers_with_what_the_guard_looks_for() -> None:
    target = WeightScope.of(["0.weight"], [0.0], [1.0])
    assert ScopeInstruction(target, 1.0).answers == REPORTED
    assert ScopeInstruction(target, 1.0, partial=True).answers == (*REPORTED, "wsa-present")
    assert ScopeInstruction(target, 1.0, partial=True, reported=False).answers == ()
