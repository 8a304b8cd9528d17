"""A row of the classifier is averaged over the clients that have its class; worked out by hand."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict

from fedwsa.algorithms.guard.replies import Rules, unusable_reply
from fedwsa.algorithms.partial_average import PartialAverage
from fedwsa.algorithms.sizes.fedrolex import FedRolex
from fedwsa.algorithms.sizes.heterofl import HeteroFL
from fedwsa.algorithms.traits import FACTS, traits_of
from fedwsa.config.component import ConfigError, asked_for, locate
from fedwsa.config.places import options
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from server.federation import Federation
from server.sizes import SizedModels
from server.strategy import build_strategy
from tests.given.sized_strategies import alternating, arrays, plain, sent

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
            [
                *("privacy.local={clipping_norm: 1.0, epsilon: 5.0}", "model=resnet20"),
                *("model.norm=static", "model.depth=8", "strategy.args.class_rows=false"),
            ],
            "model.norm=static: its statistics are measured on the clients' images",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, overrides, message: str) -> None:
    words = ["strategy=heterofl", "clients.sizes={S: 0.5, L: 0.5}", f"cache_dir={tmp_path}/c"]
    with pytest.raises(ConfigError, match=message):
        Federation(compose([*words, *overrides]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_scaler_on_learned_weights_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    words = ["strategy=heterofl", "clients.sizes={S: 0.5, L: 0.5}", "strategy.args.scaler=true"]
    for extra in ([], ["init=wave", "init.public=0.1"]):
        config = compose([*words, *extra])
        caplog.clear()
        build_strategy(config, SizedModels.of(config, ImageShape(1, 8, 8), 10))
        warned = [r.message for r in caplog.records if "strategy.args.scaler: init=" in r.message]
        assert len(warned) == len(extra[:1])


@pytest.mark.parametrize(
    ("words", "attribute", "names"),
    [
        (["strategy=heterofl"], "classifier", {"head.weight", "head.bias"}),
        (["strategy=fedrolex"], "classifier", {"head.weight", "head.bias"}),
        (["strategy=depthfl"], "classifier", {"head.weight", "head.bias"}),
        (["strategy=heterofl", "strategy.args.class_rows=false"], "classifier", set()),
    ],
)
def test_a_run_s_strategy_knows_of_the_models_what_it_goes_by(words, attribute, names) -> None:
    config = compose(words)
    strategy = build_strategy(config, SizedModels.of(config, ImageShape(1, 8, 8), 10))
    assert set(getattr(strategy, attribute)) == names


def test_scaffold_is_told_what_no_client_trains() -> None:
    config = compose(["strategy=scaffold", "model=resnet20", "model.norm=batch", "model.depth=8"])
    sizes = SizedModels.of(config, ImageShape(1, 8, 8), 10)
    buffers = {name for name, b in sizes.models["model"].named_buffers() if b.dim()}
    assert buffers
    assert build_strategy(config, sizes).untrained == buffers


def test_every_strategy_declares_the_facts_that_its_constructor_takes() -> None:
    for name, option in options("strategy").items():
        kind = locate(option.target, name)
        if kind.__module__.startswith("fedwsa."):
            asked = asked_for(kind, FACTS, name)
            assert {*asked} == {*traits_of(kind).wants}, name
