"""FedDF and training alone by sizes: what is averaged, and what is distilled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedwsa.algorithms.feddf.server import Distilling, FedDF
from fedwsa.algorithms.sizes.exclusive import Exclusive
from fedwsa.data.federated import open_federated
from fedwsa.models import exchange
from fedwsa.schema.compose import compose
from server.distillation import EnsembleDistillation
from server.sizes import SizedModels
from tests.given.sized_strategies import arrays, plain, sent

pytestmark = pytest.mark.usefixtures("task_identity")

SHAPES = {"L": {"w": (2, 2)}, "S": {"w": (1, 1)}}


def answer(message: Message, model: ArrayRecord, examples: int) -> Message:
    metrics = MetricRecord({"num-examples": examples, "loss": 0.5})
    return Message(RecordDict({"arrays": model, "metrics": metrics}), reply_to=message)


def by_three(node: int) -> str:
    return "L" if node % 3 else "S"


START = arrays(**{"L/w": [[0.0, 0.0]] * 2, "S/w": [[9.0]]})


def replies_of(strategy: Exclusive) -> list[Message]:
    one, two, three = sent(strategy, START, nodes=3)
    return [
        answer(one, arrays(w=[[1.0, 1.0]] * 2), 1),
        answer(two, arrays(w=[[5.0, 5.0]] * 2), 3),
        answer(three, arrays(w=[[7.0]]), 5),
    ]


def test_alone_each_size_is_averaged_among_its_clients() -> None:
    strategy = Exclusive(SHAPES, size_of=by_three)
    replies = replies_of(strategy)
    result, _ = strategy.aggregate_train(1, replies)
    assert plain(result) == {"L/w": [[4.0, 4.0]] * 2, "S/w": [[7.0]]}  # (1·1 + 3·5)/4
    result, _ = strategy.aggregate_train(1, replies[:1])
    assert plain(result)["S/w"] == [[9.0]]


def test_what_is_distilled_are_the_averages_by_the_models_of_all_clients() -> None:
    asked = []

    def distilled(students, teachers, number, how):
        asked.append((students, teachers, number, how))
        return {size: {"w": -tensors["w"]} for size, tensors in students.items()}

    strategy = FedDF(SHAPES, distilled=distilled, steps=3, lr=0.5, size_of=by_three)
    result, metrics = strategy.aggregate_train(4, list(reversed(replies_of(strategy))))
    [(students, teachers, number, how)] = asked
    assert {size: t["w"].tolist() for size, t in students.items()} == {
        "L": [[4.0, 4.0]] * 2,
        "S": [[7.0]],
    }
    values = [(size, float(tensors["w"].flatten()[0])) for size, tensors in teachers]
    assert values == [("L", 1.0), ("L", 5.0), ("S", 7.0)]  # whatever the order of the replies
    assert (number, how) == (4, Distilling(3, 128, 0.5, 1.0))
    assert plain(result) == {"L/w": [[-4.0, -4.0]] * 2, "S/w": [[-7.0]]}
    assert metrics["loss"] == 0.5


def test_without_steps_each_size_learns_alone() -> None:
    def never(*asked):
        raise AssertionError

    strategy = FedDF(SHAPES, distilled=never, steps=0, size_of=by_three)
    alone = Exclusive(SHAPES, size_of=by_three)
    results = [s.aggregate_train(1, replies_of(s))[0] for s in (strategy, alone)]
    assert plain(results[0]) == plain(results[1])


def test_without_public_examples_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"give it a share, as init\.public=0\.1"):
        FedDF(SHAPES, distilled=None)


@pytest.fixture(scope="module")
def distilling(tmp_path_factory) -> EnsembleDistillation:
    words = ["strategy=feddf", "init.public=0.2", "clients.sizes={S: 0.5, L: 0.5}"]
    config = compose([*words, f"cache_dir={tmp_path_factory.mktemp('cache')}"])
    data = open_federated(config.data_spec)
    sizes = SizedModels.of(config, data.whole.shape, data.whole.classes)
    return EnsembleDistillation(config, data, sizes.models, "cpu")


def state(distilling: EnsembleDistillation, size: str, seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    own = exchange.travelling_state(distilling.models[size])
    return {k: t + 0.1 * torch.randn(t.shape, generator=random) for k, t in own.items()}


HOW = Distilling(steps=150, batch_size=64, lr=3e-3, temperature=1.0)


def test_a_student_that_answers_as_its_teachers_stays_as_it_is(distilling) -> None:
    """KL's gradient is q − p = 0 there; Adam divides rounding by its own size, a step of lr."""
    same = state(distilling, "L", 0)
    how = replace(HOW, steps=1, lr=1e-6)
    made = distilling({"L": same}, [("L", same), ("L", same)], 1, how)
    for name, tensor in made["L"].items():
        torch.testing.assert_close(tensor, same[name], rtol=0, atol=1.1e-6)


def test_a_student_comes_to_answer_as_the_mean_of_its_teachers(distilling) -> None:
    teachers = [(size, state(distilling, size, k)) for k, size in enumerate("LSL")]
    student = state(distilling, "S", 7)
    public = distilling.data.whole.train[distilling.data.public].inputs
    answers = torch.stack([distilling._answers(*teacher, public) for teacher in teachers])
    wanted = answers.mean(0).softmax(1)

    def distance(tensors) -> float:
        own = distilling._answers("S", tensors, public).log_softmax(1)
        return float((wanted * (wanted.log() - own)).sum(1).mean())

    made = distilling({"S": student}, teachers, 1, HOW)["S"]
    assert distance(made) < 0.1 * distance(student)
    again = distilling({"S": student}, teachers, 1, HOW)["S"]
    assert all(torch.equal(made[k], again[k]) for k in made)
