"""A row of the classifier is averaged over the clients that have its class; worked out by hand."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict

from fedwsa.components import ConfigError
from fedwsa.config import compose
from fedwsa.simulation.averaging import PartialAverage
from fedwsa.strategies.fedrolex import FedRolex
from fedwsa.strategies.heterofl import HeteroFL
from fedwsa.strategies.replies import Rules, unusable_reply
from server.federation import Federation
from tests.test_sized_strategies import alternating, arrays, plain, sent

pytestmark = pytest.mark.usefixtures("task_identity")

SHAPES = {"L": {"h": (3, 2), "b": (3,)}, "S": {"h": (3, 1), "b": (3,)}}
START = {"h": [[9.0, 9.0]] * 3, "b": [9.0] * 3}


def answer(to: Message, rows: list[float], examples: int, classes: list[float] | None) -> Message:
    columns = to.content["arrays"]["h"].shape[1]
    said = {} if classes is None else {"classes": classes}
    model = arrays(h=[[row] * columns for row in rows], b=rows)
    metrics = MetricRecord({"num-examples": examples, **said})
    return Message(RecordDict({"arrays": model, "metrics": metrics}), reply_to=to)


@pytest.mark.parametrize("kind", [HeteroFL, FedRolex])
def test_a_row_is_the_mean_over_those_who_have_its_class(kind: type[HeteroFL]) -> None:
    strategy = kind(SHAPES, size_of=alternating, classifier=["h", "b"])
    one, two, three = sent(strategy, arrays(**START), nodes=3)
    assert two.content["config"]["class-rows"] == ["h", "b"]
    replies = [
        answer(one, [1.0, 2.0, 3.0], 1, [1.0, 0.0, 0.0]),
        answer(two, [5.0, 6.0, 7.0], 3, [1.0, 1.0, 0.0]),
        answer(three, [3.0, 4.0, 5.0], 1, [0.0, 1.0, 0.0]),
    ]
    result, metrics = strategy.aggregate_train(1, replies)
    # Class 0: one and two, (1·1 + 3·5)/4 = 4; class 1: two and three, (3·6 + 1·4)/4 = 5.5; class 2:
    # nobody, as it was. Column 1 is the large ones' alone: 1 for class 0, 4 for class 1.
    assert plain(result) == {"h": [[4.0, 1.0], [5.5, 4.0], [9.0, 9.0]], "b": [4.0, 5.5, 9.0]}
    assert "classes" not in metrics
    # From averages made at the workers it is the same.
    parts = []
    for chosen in ([0, 2], [1]):
        average = PartialAverage(Rules())
        for i in chosen:
            assert average.add(replies[i].content, (one, two, three)[i].content) is None
        parts.append(Message(average.content(), reply_to=(one, two, three)[chosen[0]]))
    assert plain(strategy.aggregate_train(1, parts)[0]) == plain(result)


def test_where_all_have_all_classes_or_say_nothing_it_is_the_plain_average() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(4, 3, generator=random).tolist()
    results = []
    for classifier, said in ((["h", "b"], [1.0] * 3), (["h", "b"], None), ([], None)):
        strategy = HeteroFL(SHAPES, size_of=alternating, classifier=classifier)
        to = sent(strategy, arrays(**START), nodes=4)
        replies = [
            answer(m, v, n + 3, said) for n, (m, v) in enumerate(zip(to, values, strict=True))
        ]
        results.append(plain(strategy.aggregate_train(1, replies)[0]))
    assert results[0] == results[1] == results[2]  # to the bit


@pytest.mark.parametrize("said", [[1.0, 0.0], [0.5, 1.0, 1.0], [0.0, 0.0, 0.0]])
def test_a_client_that_says_impossible_classes_is_refused(said: list[float]) -> None:
    strategy = HeteroFL(SHAPES, size_of=alternating, classifier=["h", "b"])
    one, _ = sent(strategy, arrays(**START))
    reply = answer(one, [1.0, 2.0, 3.0], 1, said)
    assert "classes must be" in str(unusable_reply(reply.content, one.content, Rules()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy.local={clipping_norm: 1.0, epsilon: 5.0}"], "strategy.args.class_rows: Heter"),
        (
            ["init=wave", "strategy.args.scaler=true"],
            "strategy.args.scaler: init=wave gives weights that are at scale already",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, overrides, message: str) -> None:
    words = ["strategy=heterofl", "clients.sizes={S: 0.5, L: 0.5}", f"cache_dir={tmp_path}/c"]
    with pytest.raises(ConfigError, match=message):
        Federation(compose([*words, *overrides]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
