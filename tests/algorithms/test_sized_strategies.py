"""Averaging across sizes, over hand-made Flower messages: the numbers are worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedwsa.algorithms.averaging import averages_by
from fedwsa.algorithms.sizes.fedrolex import FedRolex
from fedwsa.algorithms.sizes.heterofl import HeteroFL
from fedwsa.algorithms.sizes.server import SizedFedAvg, sized
from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.config.component import Component
from fedwsa.models import build_model, exchange
from fedwsa.models.architecture import Axis, architecture_of
from fedwsa.models.inputs import ImageShape
from fedwsa.wire import messages
from tests.given.fedwsa import Nodes
from tests.given.sized_strategies import alternating, arrays, plain, sent

pytestmark = pytest.mark.usefixtures("task_identity")

STRATEGIES = [HeteroFL, FedRolex]
# A layer of two units that read two, and its half.
HALF = {"L": {"w": (2, 2), "b": (2,)}, "S": {"w": (1, 1), "b": (1,)}}


def answer(message: Message, model: ArrayRecord, examples: int, **metrics: float) -> Message:
    record = MetricRecord({"num-examples": examples, "loss": 0.5, **metrics})
    return Message(RecordDict({"arrays": model, "metrics": record}), reply_to=message)


def test_an_entry_is_the_mean_of_those_who_have_it_and_else_keeps_its_value() -> None:
    strategy = HeteroFL(HALF, size_of=alternating)
    start = arrays(w=[[0.0, 0.0], [0.0, 0.0]], b=[7.0, 7.0])
    large, small = sent(strategy, start)
    assert plain(small.content["arrays"]) == {"w": [[0.0]], "b": [7.0]}
    assert small.content["config"]["size"] == "S"
    replies = [
        answer(large, arrays(w=[[1.0, 2.0], [3.0, 4.0]], b=[1.0, 2.0]), 1),
        answer(small, arrays(w=[[5.0]], b=[5.0]), 3),
    ]
    result, metrics = strategy.aggregate_train(1, replies)
    # Overlap: (1·1 + 3·5)/4 = 4; the rest is the large client's.
    assert plain(result) == {"w": [[4.0, 2.0], [3.0, 4.0]], "b": [4.0, 2.0]}
    assert metrics["loss"] == 0.5
    # The small one alone: what it does not have stays.
    result, _ = strategy.aggregate_train(1, replies[1:])
    assert plain(result) == {"w": [[5.0, 0.0], [0.0, 0.0]], "b": [5.0, 7.0]}
    # Counting each client once: (1 + 5)/2 = 3.
    once = HeteroFL(HALF, size_of=alternating, weighted="clients")
    large, small = sent(once, start)
    again = [
        answer(large, replies[0].content["arrays"], 1),
        answer(small, arrays(w=[[5.0]], b=[5.0]), 3),
    ]
    assert plain(once.aggregate_train(1, again)[0])["w"] == [[3.0, 2.0], [3.0, 4.0]]
    assert again[1].content["metrics"]["num-examples"] == 3
    assert (averages_by(strategy), averages_by(once)) == ("num-examples", None)


def test_a_window_rolls_on_by_a_unit_each_round() -> None:
    strategy = FedRolex(HALF, size_of=alternating)
    start = arrays(w=[[1.0, 2.0], [3.0, 4.0]], b=[5.0, 6.0])
    for number, expected in ((1, ([[1.0]], [5.0])), (2, ([[4.0]], [6.0])), (3, ([[1.0]], [5.0]))):
        _, small = sent(strategy, start, number)
        assert plain(small.content["arrays"]) == {"w": expected[0], "b": expected[1]}
    _, small = sent(strategy, start, 2)
    result, _ = strategy.aggregate_train(2, [answer(small, arrays(w=[[9.0]], b=[8.0]), 1)])
    assert plain(result) == {"w": [[1.0, 2.0], [3.0, 9.0]], "b": [5.0, 8.0]}


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("names", [["A"], ["A", "B"]])
def test_when_all_sizes_are_equal_it_is_fedavg(kind: type[SizedFedAvg], names: list[str]) -> None:
    torch.manual_seed(0)
    shapes = {name: {"w": (5, 4), "b": (5,)} for name in names}
    strategy = kind(shapes, size_of=lambda node: names[node % len(names)])
    start = messages.to_arrays({"w": torch.randn(5, 4), "b": torch.randn(5)})
    for number in (1, 2, 3):
        mine, theirs = (sent(s, start, number, nodes=4) for s in (strategy, FedAvg()))
        trained = [messages.to_arrays({"w": torch.randn(5, 4), "b": torch.randn(5)}) for _ in mine]
        results = [
            s.aggregate_train(
                number,
                [answer(m, t, n + 3) for n, (m, t) in enumerate(zip(to, trained, strict=True))],
            )
            for s, to in ((strategy, mine), (FedAvg(), theirs))
        ]
        for key in ("w", "b"):
            ours, flower = (r[0][key].numpy() for r in results)
            if len(names) == 1:
                assert np.array_equal(ours, flower)  # to the bit
            np.testing.assert_allclose(ours, flower, rtol=1e-6, atol=1e-7)
        assert results[0][1] == pytest.approx(dict(results[1][1]))


MODELS = {
    "mlp.mlp": {"depth": 3},
    "cnn.cnn": {"depth": 2},
    "resnet.resnet": {"depth": 14, "norm": "static"},
    "vgg.vgg": {"depth": 11, "norm": "batch"},
    "vit.vit": {"depth": 2, "heads": None, "patch": 8, "mlp_ratio": 4.0},
}


def states(name: str, sizes: Mapping[str, Mapping[str, object]]) -> tuple[dict, dict]:
    """State of a model of each size, and the axes of L."""
    found = {}
    for size, arguments in sizes.items():
        model = network(name, **arguments)
        found[size] = exchange.travelling_state(model)
        if size == "L":
            axes = architecture_of(component(name, **arguments)).axes(model)
    return found, axes


def component(name: str, **arguments: object) -> Component:
    return Component.of(f"fedwsa.models.{name}", **MODELS[name]).replace(**arguments)


def network(name: str, **arguments: object) -> torch.nn.Module:
    return build_model(component(name, **arguments), ImageShape(3, 32, 32), 7, seed=0)


def shapes_of(found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {s: {k: tuple(t.shape) for k, t in state.items()} for s, state in found.items()}


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_distributed_and_not_trained_comes_back_as_it_was(kind, name: str) -> None:
    found, axes = states(name, {"L": {"width": 0.5}, "M": {"width": 0.25}, "S": {"width": 0.125}})
    sizes = list(found)
    strategy = kind(shapes_of(found), axes=axes, size_of=lambda node: sizes[node % 3])
    assert strategy.largest == "L"
    start = strategy.join(found)
    for number in (1, 2, 30):
        replies = [
            answer(m, m.content["arrays"], 5 + i)
            for i, m in enumerate(sent(strategy, start, number, 5))
        ]
        result, _ = strategy.aggregate_train(number, replies)
        for key, array in start.items():
            np.testing.assert_allclose(result[key].numpy(), array.numpy(), rtol=1e-6, atol=1e-8)
            assert result[key].dtype == array.dtype


@pytest.mark.parametrize("name", ["cnn.cnn", "vit.vit"])
def test_a_rolled_part_computes_what_its_units_compute_in_the_whole(name: str) -> None:
    """Zero all units of the whole network that a part has not: the two give the same answer.

    That proves that the window is the same on both sides of every layer, across heads and
    flattened channels. A norm over units is left out of it: it would see the zeros.
    """
    widths = {"L": {"width": 0.25}, "S": {"width": 0.125}}
    found, axes = states(name, widths)
    strategy = FedRolex(shapes_of(found), axes=axes, size_of=lambda node: "S")
    part = strategy.split(strategy.join(found), "S", server_round=3)
    nothing = messages.to_arrays({k: torch.zeros_like(t) for k, t in found["L"].items()})
    message, _ = sent(strategy, nothing, number=3)
    embedded, _ = strategy.aggregate_train(3, [answer(message, part, 1)])
    whole, small = (network(name, **widths[size]) for size in "LS")
    for model in (whole, small):
        for module in list(model.modules()):
            for key, child in list(module.named_children()):
                if isinstance(child, torch.nn.LayerNorm):
                    setattr(module, key, torch.nn.Identity())
    whole.load_state_dict(messages.to_tensors(embedded), strict=False)
    small.load_state_dict(messages.to_tensors(part), strict=False)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(whole.eval()(x), small.eval()(x), rtol=1e-4, atol=1e-5)


def test_messages_of_a_size_share_a_content_and_each_has_its_own_rate() -> None:
    strategy = HeteroFL(HALF, size_of=alternating, scaler=True)
    one, two, three, four = sent(strategy, arrays(w=[[0.0] * 2] * 2, b=[0.0] * 2), nodes=4)
    assert one.content is three.content
    assert two.content is four.content
    assert one.content["config"]["size-rate"] == 1.0
    assert two.content["config"]["size-rate"] == 0.5
    evaluated = strategy.configure_evaluate(
        1, arrays(w=[[1.0] * 2] * 2, b=[0.0] * 2), ConfigRecord(), Nodes(2)
    )
    assert {m.content["arrays"]["w"].shape for m in evaluated} == {(2, 2), (1, 1)}


def test_a_reply_of_another_size_is_left_out() -> None:
    strategy = HeteroFL(HALF, size_of=alternating)
    large, small = sent(strategy, arrays(w=[[0.0] * 2] * 2, b=[0.0] * 2))
    wrong = answer(small, arrays(w=[[9.0] * 2] * 2, b=[9.0] * 2), 1)
    good = answer(large, arrays(w=[[1.0] * 2] * 2, b=[1.0] * 2), 1)
    result, _ = strategy.aggregate_train(1, [wrong, good])
    assert plain(result) == {"w": [[1.0] * 2] * 2, "b": [1.0] * 2}
    failed = Message(Error(2, "broken"), reply_to=large)
    assert strategy.aggregate_train(1, [wrong, failed]) == (None, None)


class Asked(Nodes):
    """Nodes that answer a query, the last one of them wrongly."""

    queries = 0

    def send_and_receive(self, given, *, timeout=None):
        replies = []
        for message in given:
            self.queries += 1
            node = message.metadata.dst_node_id
            size = "XXL" if node == self.count else alternating(node)
            record = RecordDict({"config": ConfigRecord({"size": size})})
            replies.append(Message(record, reply_to=message))
        return replies


def test_without_a_list_every_node_is_asked_once() -> None:
    strategy, grid = HeteroFL(HALF), Asked(3)
    start = arrays(w=[[0.0] * 2] * 2, b=[0.0] * 2)
    for number in (1, 2):
        found = list(strategy.configure_train(number, start, ConfigRecord(), grid))
        assert {m.metadata.dst_node_id: m.content["config"]["size"] for m in found} == {
            1: "L",
            2: "S",
        }
    assert grid.queries == 3
    alone = HeteroFL({"M": HALF["L"]})
    with pytest.raises(ValueError, match="no node says its size"):
        alone.configure_train(1, start, ConfigRecord(), Asked(2))


@pytest.mark.parametrize(
    ("kind", "shapes", "message"),
    [
        (HeteroFL, {}, "at least one size is needed"),
        (
            HeteroFL,
            {"L": {"w": (4, 1)}, "S": {"w": (1, 2)}},
            r"S has w of \(1, 2\), which does not",
        ),
        (HeteroFL, {"L": {"w": (4,)}, "S": {"v": (2,)}}, "size S has v, which L lacks"),
        (HeteroFL, {"L": {"w": (4,)}, "S": {"w": (1, 1)}}, r"size S has w of \(1, 1\)"),
        (
            HeteroFL,
            {"L": {"q": (12,)}, "S": {"q": (9,)}},
            r"S cannot have q of \(9,\) in the \(12,",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(kind, shapes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        kind(shapes, axes={"q": {0: Axis(3, 2)}})
    assert "\n" not in str(caught.value)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="own='\\(' is not a regular expression"):
        HeteroFL(HALF, own="(")
    with pytest.raises(ValueError, match="weighted must be one of examples, clients"):
        HeteroFL(HALF, weighted="shares")
    strategy = HeteroFL(HALF, size_of=alternating)
    with pytest.raises(ValueError, match=r"the global arrays have w as \(1, 1\), not as \(2, 2\)"):
        sent(strategy, arrays(w=[[1.0]], b=[1.0, 1.0]))


def test_the_strategy_of_sizes_is_found_in_wrappers() -> None:
    strategy = HeteroFL(HALF)
    assert sized(FedWSA(strategy)) is sized(strategy) is strategy
    assert sized(FedWSA(FedAvg())) is None
    assert averages_by(FedWSA(strategy)) == "num-examples"
