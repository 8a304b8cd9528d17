"""What the guard does below the quorum: ask again, skip, stop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg

from fedwsa.algorithms.guard.guard import Guard
from fedwsa.algorithms.guard.quorum import TooFewResults, Verdict
from fedwsa.algorithms.wsa.server import FedWSA
from tests.given.fedwsa import Nodes, answer, arrays_of, net
from tests.given.guard import START, asked, record, reply

pytestmark = pytest.mark.usefixtures("task_identity")


class Again(Nodes):
    """Answers what it is asked again, a list of behaviours at a time."""

    def __init__(self, count: int, *rounds: dict[int, float]) -> None:
        super().__init__(count)
        self.rounds, self.asked = list(rounds), []

    def send_and_receive(self, messages, *, timeout=None):
        self.asked.append((sorted(m.metadata.dst_node_id for m in messages), timeout))
        values = self.rounds.pop(0)
        return [
            reply(m, values[m.metadata.dst_node_id])
            for m in messages
            if m.metadata.dst_node_id in values
        ]


class Witness:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, str]] = []

    def lost(self, incidents) -> None:
        self.told += [(i.node, i.kind) for i in incidents]

    def round_is(self, kind: str, what: str) -> None:
        self.told.append((kind, what))


def test_below_the_quorum_those_without_an_answer_are_asked_again() -> None:
    guard = Guard(FedAvg(), min_results=0.7, repeats=3, timeout=5.0)
    grid = Again(4, {}, {2: math.nan, 3: 5.0}, {2: 900.0})
    sent = list(guard.configure_train(1, record(START), ConfigRecord(), grid))
    first = [m for m in sent if m.metadata.dst_node_id in (1, 4)]
    arrays, _ = guard.aggregate_train(1, [reply(m, 2.0) for m in first])
    assert grid.asked == [([2, 3], 5.0)] * 2  # 0.7 of four are three; then there are enough
    np.testing.assert_allclose(arrays["b"].numpy(), 3.0)
    assert guard.gathered.repeats == 2
    assert set(guard.gathered.lost()) == {2}
    assert guard.gathered.lost()[2].kind == "rejected"


def test_a_quorum_that_is_never_met_skips_the_round_or_ends_the_run() -> None:
    for below in ("skip", "stop"):
        guard = Guard(FedWSA(FedAvg()), min_results=3, repeats=1, below=below)
        grid = Again(3, {})
        grid.rounds = [{}]
        arrays_sent = arrays_of(net())
        sent = list(guard.configure_train(1, arrays_sent, ConfigRecord(), grid))
        target = guard.strategy.target
        replies = [answer(sent[0], net(1), 5)]
        if below == "skip":
            assert guard.aggregate_train(1, replies) == (None, None)
            assert guard.strategy.target is target  # nothing inside has moved
            continue
        with pytest.raises(TooFewResults) as caught:
            guard.aggregate_train(1, replies)
        assert str(caught.value) == (
            "round 1: 1 of 3 clients gave a usable answer, 3 are needed; of the others most: "
            "no answer"
        )


def test_nobody_is_asked_again_where_all_that_were_asked_have_answered() -> None:
    guard = Guard(FedAvg(), min_results=4, repeats=3)
    sent = asked(guard)
    never = lambda fresh: pytest.fail("asked")  # noqa: E731
    witness = Witness()
    training = guard.training(1, sent, never, witness, cohort=5)
    gathered, verdict = training.conclude([reply(m) for m in sent])
    assert gathered.repeats == 0
    line = "3 of 5 clients gave a usable answer, 4 are needed; the others do not answer"
    assert verdict == Verdict("stop", line)
    assert witness.told == [("stopped", line)]


def test_where_all_are_away_the_model_stays_and_a_witness_is_told() -> None:
    guard, witness = Guard(FedAvg(), below="stop"), Witness()
    gathered, verdict = guard.training(1, [], pytest.fail, witness, cohort=2).run()
    assert gathered.replies == []
    assert verdict == Verdict("skip", "no client of the cohort answers")
    assert witness.told == [("skipped", "no client of the cohort answers, the model stays")]


def test_a_training_sends_asks_again_and_tells_what_goes_wrong_in_its_order() -> None:
    guard, witness = Guard(FedAvg(), min_results=3, repeats=2), Witness()
    grid = Again(3, {1: 1.0, 2: math.nan}, {2: 2.0, 3: math.inf}, {3: 3.0})
    gathered, verdict = guard.training(1, asked(guard), grid.send_and_receive, witness).run()
    assert [nodes for nodes, _ in grid.asked] == [[1, 2, 3], [2, 3], [3]]
    assert verdict.then == "aggregate"
    assert sorted(gathered.accepted) == [1, 2, 3]
    assert witness.told == [
        (2, "rejected"),
        (3, "missing"),
        (3, "rejected"),
        ("repeated", "those without a usable answer were asked again 2 times"),
    ]


def test_answers_to_a_training_that_nobody_configured_are_refused() -> None:
    with pytest.raises(RuntimeError, match="before configure_train: nobody was asked"):
        Guard(FedAvg(), below="skip").aggregate_train(1, [])
