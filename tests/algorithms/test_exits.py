"""DepthFL and ScaleFL: what classifiers of several depths share, and learn from each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedwsa.algorithms.divergence import divergence
from fedwsa.algorithms.exits.client import ExitLosses, last, mutual
from fedwsa.algorithms.exits.server import DepthFL, ScaleFL
from fedwsa.algorithms.objective import ForwardPass
from fedwsa.config.component import Component
from fedwsa.models import build_model, exchange
from fedwsa.models.exits import Exits, exited
from fedwsa.models.inputs import ImageShape
from fedwsa.wire import messages
from tests.given.sized_strategies import alternating, arrays, plain, sent

pytestmark = pytest.mark.usefixtures("task_identity")

SHAPE = ImageShape(1, 4, 4)
MLP = Component.of("fedwsa.models.mlp.mlp", width=0.02, depth=3)


def answer(message: Message, model: ArrayRecord, examples: int, **metrics: object) -> Message:
    record = MetricRecord({"num-examples": examples, "loss": 0.5, **metrics})
    return Message(RecordDict({"arrays": model, "metrics": record}), reply_to=message)


def filled(message: Message, value: float) -> ArrayRecord:
    sent_ = message.content["arrays"]
    return messages.to_arrays({k: torch.full(a.shape, value) for k, a in sent_.items()})


def begun(kind, sizes: dict[str, dict], **settings):
    """A strategy for mlps of some sizes, and the arrays that it begins with."""
    components = {size: MLP.replace(**different) for size, different in sizes.items()}
    models = {size: build_model(c, SHAPE, 3, 0) for size, c in components.items()}
    states = {size: exchange.travelling_state(model) for size, model in models.items()}
    shapes = {s: {k: tuple(t.shape) for k, t in of.items()} for s, of in states.items()}
    exits = Exits.of(components, SHAPE, 3, 0)
    strategy = kind(shapes, exits=exits, size_of=alternating, **settings)
    return strategy, strategy.join(states), states


def test_blocks_and_the_classifier_of_a_depth_are_shared_by_those_who_reach_it() -> None:
    strategy, start, states = begun(DepthFL, {"L": {}, "S": {"depth": 1}})
    parts = ("weight", "bias")
    assert set(start) == {
        *(f"hidden{i}.{part}" for i in range(3) for part in parts),
        *(f"head.{part}" for part in parts),
        *(f"depth 1/head.{part}" for part in parts),
    }
    to = sent(strategy, start, nodes=3)  # L, S, L
    assert set(to[0].content["arrays"]) == {
        *states["L"],
        *(f"exits.0.head.{part}" for part in parts),
    }
    assert set(to[1].content["arrays"]) == set(states["S"])
    assert list(to[0].content["config"]["exit-depths"]) == [1]
    assert "exit-depths" not in to[1].content["config"]
    assert ExitLosses.settings not in to[1].content
    # What all begin with is one classifier.
    early, own = (
        m.content["arrays"][k].numpy()
        for m, k in ((to[0], "exits.0.head.weight"), (to[1], "head.weight"))
    )
    np.testing.assert_array_equal(early, own)
    replies = [answer(m, filled(m, v), 1) for m, v in zip(to, (1.0, 5.0, 3.0), strict=True)]
    result, _ = strategy.aggregate_train(1, replies)
    values = {k: set(a.numpy().flatten().tolist()) for k, a in result.items()}
    assert values["hidden0.weight"] == {3.0}  # (1 + 5 + 3)/3
    assert values["hidden2.weight"] == {2.0}  # (1 + 3)/2: only the deep ones have it
    assert values["head.bias"] == {2.0}
    assert values["depth 1/head.bias"] == {3.0}  # all reach depth 1
    # Without a deep client what lies deeper stays.
    result, _ = strategy.aggregate_train(1, [answer(to[1], filled(to[1], 5.0), 1)])
    assert plain(result)["head.bias"] == plain(start)["head.bias"]
    assert set(plain(result)["depth 1/head.bias"]) == {5.0}
    assert strategy.has_own
    for size in "LS":
        assert set(strategy.plain(result, size, 1)) == set(states[size])


def test_the_classifier_of_a_depth_has_the_units_of_the_widest_that_reaches_it() -> None:
    strategy, start, _ = begun(ScaleFL, {"L": {}, "S": {"depth": 1, "width": 0.01}})
    assert start["depth 1/head.weight"].shape == (3, 4)  # 200·0.02 units
    large, small = sent(strategy, start)
    assert small.content["arrays"]["head.weight"].shape == (3, 2)
    assert large.content["arrays"]["exits.0.head.weight"].shape == (3, 4)
    replies = [answer(large, filled(large, 1.0), 1), answer(small, filled(small, 4.0), 2)]
    result, _ = strategy.aggregate_train(1, replies)
    # The first two units: (1·1 + 2·4)/3 = 3; the others are the large client's.
    assert plain(result)["depth 1/head.weight"] == [[3.0, 3.0, 1.0, 1.0]] * 3


def test_rows_of_all_classifiers_are_averaged_by_class() -> None:
    names = ["head.weight", "head.bias"]
    strategy, start, _ = begun(DepthFL, {"L": {}, "S": {"depth": 1}}, classifier=names)
    to = sent(strategy, start)
    # Workers that average their replies are told of all of them.
    assert [list(m.content["config"]["class-rows"]) for m in to] == [
        [*names, *(f"exits.0.{name}" for name in names)],
        names,
    ]
    said = ([1.0, 0.0, 0.0], [1.0, 1.0, 0.0])
    replies = [
        answer(message, filled(message, value), examples, classes=classes)
        for message, value, classes, examples in zip(to, (2.0, 6.0), said, (1, 3), strict=True)
    ]
    result = plain(strategy.aggregate_train(1, replies)[0])
    # (1·2 + 3·6)/4 = 5, the small one's alone, and nobody's as it was.
    kept = plain(start)["depth 1/head.bias"][2]
    assert result["depth 1/head.bias"] == pytest.approx([5.0, 6.0, kept])
    assert result["head.bias"] == [2.0, *plain(start)["head.bias"][1:]]


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


LOGITS = [np.array([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]]), np.array([[1.0, 0.5, 0.0]] * 2)]
LABELS = np.array([1, 0])


def test_the_losses_of_the_papers_are_those_of_their_equations() -> None:
    torch_logits = [torch.tensor(z, requires_grad=True) for z in LOGITS]
    labels = torch.tensor(LABELS)
    entropy = [-np.log(softmax(z))[np.arange(2), LABELS] for z in LOGITS]

    def kl(teacher: int, student: int, temperature: float) -> np.ndarray:
        p, q = (softmax(LOGITS[k] / temperature) for k in (teacher, student))
        return temperature**2 * (p * np.log(p / q)).sum(1)

    # DepthFL: CE_1 + CE_2 + w·(KL(p_2 ‖ p_1) + KL(p_1 ‖ p_2)).
    found = mutual(torch_logits, labels, 0.5, 1.0)
    expected = entropy[0] + entropy[1] + 0.5 * (kl(1, 0, 1.0) + kl(0, 1, 1.0))
    np.testing.assert_allclose(found.detach(), expected)
    # ScaleFL: (1·(CE_1 + w·τ²·KL) + 2·CE_2)/3.
    found = last(torch_logits, labels, 0.5, 3.0)
    expected = (entropy[0] + 0.5 * kl(1, 0, 3.0) + 2 * entropy[1]) / 3
    np.testing.assert_allclose(found.detach(), expected)
    # The teacher learns nothing from its student: dKL(p ‖ q)/dz_q = q − p, and nothing else.
    divergence(torch_logits[1], torch_logits[0], 1.0).sum().backward()
    np.testing.assert_allclose(torch_logits[0].grad, softmax(LOGITS[0]) - softmax(LOGITS[1]))
    assert torch_logits[1].grad is None


@pytest.mark.parametrize("rule", [mutual, last])
def test_one_classifier_learns_the_task_alone(rule) -> None:
    logits, labels = torch.tensor(LOGITS[0]), torch.tensor(LABELS)
    whole = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(rule([logits], labels, 1.0, 2.0), whole)


def test_what_is_added_to_the_task_makes_the_rule_s_loss() -> None:
    model = build_model(exited(MLP, [1, 2]), SHAPE, 3, 0)
    told = {ExitLosses.settings: {"rule": "last", "weight": 0.3, "temperature": 2.0}}
    inputs, labels = torch.randn(5, *SHAPE), torch.tensor([0, 1, 2, 0, 1])
    masked = lambda z: z.masked_fill(torch.tensor([False, False, True]), 0.0)  # noqa: E731
    own = masked(model(inputs))
    seen = ForwardPass(inputs, labels, lambda: inputs, lambda name: inputs, own, masked)
    task = torch.nn.functional.cross_entropy(own, labels, reduction="none")
    logits = [*(masked(z) for z in model.early(inputs)), own]
    found = ExitLosses(model, told).loss(seen) + task
    torch.testing.assert_close(found, last(logits, labels, 0.3, 2.0))


def test_classifiers_learn_from_each_other_when_there_is_something_to_learn() -> None:
    deep, _, _ = begun(DepthFL, {"L": {}, "S": {"depth": 1}}, distill=2.0, ramp=0.3)
    deep._rounds = 10  # so that it rises over three rounds
    assert deep.weight(1) == pytest.approx(2 * math.exp(-5))
    assert deep.weight(2) == pytest.approx(2 * math.exp(-5 * (2 / 3) ** 2))
    assert deep.weight(4) == deep.weight(9) == 2.0
    scaled, _, _ = begun(ScaleFL, {"L": {}, "S": {"depth": 1}}, distill=2.0, after=0.25)
    scaled._rounds = 8
    assert [scaled.weight(r) for r in (1, 2, 3, 8)] == [0.0, 0.0, 2.0, 2.0]


def test_depths_of_several_widths_are_no_depthfl() -> None:
    with pytest.raises(ValueError, match="sizes may differ in depth only"):
        begun(DepthFL, {"L": {}, "S": {"depth": 1, "width": 0.01}})


def test_what_is_not_of_a_size_is_left_out() -> None:
    strategy, start, _ = begun(ScaleFL, {"L": {}, "S": {"depth": 1}})
    large, _ = sent(strategy, start)
    assert strategy.aggregate_train(1, [answer(large, arrays(w=[1.0]), 1)])[0] is None
