"""A round's record: made of its parts, and nobody's to change."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from fedwsa.algorithms.privacy import local_spent
from fedwsa.data.evaluation import Score
from fedwsa.schema.compose import compose
from server.budget import Budget
from server.callbacks.facts import facts
from server.record import ClientScores, Evaluated, RoundRecord, Scored, Trained

TRAINED = Trained(cohort=(0, 2, 3), dropped=(2,), failed=(3,), train_loss=0.5, moved=True)
SCORED = Scored(sizes={"L": Score(0.9, 0.1, 10), "S": Score(0.6, 0.4, 10)})
EVALUATED = Evaluated(clients=ClientScores.of([0.5] * 19 + [0.1]), failed_evaluation=(1,))


def test_it_says_what_its_parts_say() -> None:
    record = RoundRecord(7, **vars(TRAINED), **vars(SCORED), **vars(EVALUATED))
    said = facts(record)
    assert (said["round"], said["train_loss"]) == (7, 0.5)
    assert (said["accuracy"], said["loss"]) == (0.9, 0.1)  # of the largest size, the first
    assert said["client_accuracy_worst10"] == pytest.approx(0.3)  # of 20, the two worst
    lists = [said[key] for key in ("cohort", "dropped", "late", "failed", "failed_evaluation")]
    assert lists == [[0, 2, 3], [2], [], [3], [1]]
    assert record.asked == (0, 3)


@pytest.mark.parametrize("name", ["epsilon", "cohort", "validation", "clients"])
def test_nobody_changes_it(name: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(RoundRecord(1), name, None)


def test_under_local_privacy_who_is_asked_most_often_has_paid_most() -> None:
    privacy = compose(["privacy.local={clipping_norm: 1.0, epsilon: 2.0}"]).privacy
    budget = Budget(privacy, None, {"asked/3": 4, "moved": 9})  # type: ignore[arg-type]
    # Client 0 pays once, client 3 for the fifth time; client 2 drops out before it answers.
    assert budget.after(TRAINED) == local_spent(2.0, privacy.delta, 5)
    assert budget.sums() == {"asked/0": 1, "asked/3": 5}
