"""One target scope for clients of every size: normalised, and fused over those who have a layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedwsa import FedWSA, ScopeAlignment, WeightScope
from fedwsa.algorithms.sizes.heterofl import HeteroFL
from fedwsa.algorithms.sizes.server import SizedFedAvg
from fedwsa.config.component import Component
from fedwsa.models import build_model, exchange
from fedwsa.models.inputs import ImageShape
from fedwsa.scope.weight_scope import fan_in
from fedwsa.wire import messages
from tests.given.fedwsa import Nodes, answer, content, net

pytestmark = pytest.mark.usefixtures("task_identity")


def mlp(width: float, depth: int = 2, seed: int = 0) -> torch.nn.Module:
    made = Component.of("fedwsa.models.mlp.mlp", width=width, depth=depth)
    return build_model(made, ImageShape(1, 8, 8), 10, seed)


def strategy_of(kind: type[SizedFedAvg], models: dict[str, torch.nn.Module]) -> SizedFedAvg:
    shapes = {
        size: {k: tuple(t.shape) for k, t in exchange.travelling_state(model).items()}
        for size, model in models.items()
    }
    names = list(models)
    return kind(shapes, size_of=lambda node: names[(node - 1) % len(names)])


def begun(
    strategy: FedWSA, inner: SizedFedAvg, models: dict[str, torch.nn.Module], nodes: int = 2
) -> list[Message]:
    start = inner.join({s: exchange.travelling_state(m) for s, m in models.items()})
    found = strategy.configure_train(1, start, ConfigRecord(), Nodes(nodes))
    return sorted(found, key=lambda m: m.metadata.dst_node_id)


def test_widths_agree_in_normalised_scopes_and_not_in_plain_ones() -> None:
    """torch draws from ±1/√fan_in: σ = 1/√(3·fan_in), so σ·√fan_in = 1/√3 at every width."""
    wide, narrow = mlp(2.0), mlp(0.5)
    plain = [WeightScope.measure(m) for m in (wide, narrow)]
    # hidden1 reads 400 units and 100: half the σ.
    assert plain[0].std[1] / plain[1].std[1] == pytest.approx(0.5, rel=0.05)
    for model, scope in zip((wide, narrow), plain, strict=True):
        root = fan_in([model.get_parameter(name) for name in scope.names]).sqrt()
        normalised = scope.times(root).std.tolist()
        assert normalised == pytest.approx([1 / math.sqrt(3)] * 3, rel=0.05)
    assert fan_in([torch.zeros(8, 3, 5, 5)]).tolist() == [75.0]


def test_a_client_brings_the_target_to_its_own_fan_in() -> None:
    # Layers read 4 and 8: targets μ = 0.1, σ² = 0.04 on the wire are 0.1/√4, 0.04/4 and so on.
    model = net()
    alignment = ScopeAlignment(model, content(**{"wsa-normalise": True}))
    assert alignment.target.mean.tolist() == pytest.approx([0.1 / 2, 0.1 / math.sqrt(8)])
    assert alignment.target.variance.tolist() == pytest.approx([0.04 / 4, 0.04 / 8])
    reported, scope = alignment.end(), WeightScope.measure(model)
    mean, variance = scope.mean * torch.tensor([2.0, 8**0.5]), scope.variance * torch.tensor([4, 8])
    assert reported["wsa-mean"] == pytest.approx(mean.tolist())
    assert reported["wsa-spread"] == pytest.approx((variance + mean**2).tolist())
    # KL does not see the factor: N(aμ, a²σ²) from N(aμ̃, a²σ̃²) is as far for every a.
    wire = WeightScope.of(scope.names, [0.1, 0.1], [0.04, 0.04])
    kl = WeightScope(scope.names, mean, variance).kl(wire)
    assert reported["wsa-kl"] == pytest.approx(kl.tolist())
    assert "wsa-present" not in reported


def test_a_client_reports_zeros_for_layers_that_it_lacks() -> None:
    names = ["0.weight", "7.weight", "2.weight"]
    alignment = ScopeAlignment(net(), content(names=names, **{"wsa-partial": True}))
    alignment.add_gradient()
    reported = alignment.end()
    assert reported["wsa-present"] == [1.0, 0.0, 1.0]
    full = ScopeAlignment(net(), content()).end()
    for key, values in full.items():
        assert reported[key] == [values[0], 0.0, values[1]]
    nothing = ScopeAlignment(net(), content(names=["7.weight"], **{"wsa-partial": True}))
    nothing.add_gradient()
    assert nothing.end() == {
        "wsa-present": [0.0],
        "wsa-mean": [0.0],
        "wsa-spread": [0.0],
        "wsa-kl": [0.0],
    }


def test_scopes_of_two_widths_fuse_into_one_target() -> None:
    models = {"L": mlp(1.0), "S": mlp(0.5, seed=1)}
    inner = strategy_of(HeteroFL, models)
    strategy = FedWSA(inner, normalise=True)
    large, small = begun(strategy, inner, models)
    assert large.content["wsa-target"] == small.content["wsa-target"]
    root = fan_in([models["L"].get_parameter(n) for n in strategy.target.names]).sqrt()
    first = WeightScope.measure(models["L"])
    torch.testing.assert_close(strategy.target.variance, first.variance * root**2)
    arrays, metrics = strategy.aggregate_train(
        1, [answer(large, models["L"], 3), answer(small, models["S"], 1)]
    )
    scopes = []
    for model in models.values():
        scope = WeightScope.measure(model)
        own = fan_in([model.get_parameter(n) for n in scope.names]).sqrt()
        scopes.append(scope.times(own))
    expected = WeightScope.fuse(scopes, [3, 1])
    torch.testing.assert_close(strategy.target.mean, expected.mean)
    torch.testing.assert_close(strategy.target.variance, expected.variance)
    # The report is in the weights of the largest size, beside the average's own scope.
    torch.testing.assert_close(strategy.report.fused.variance, expected.variance / root**2)
    assert strategy.report.averaged.names == first.names
    assert set(metrics) == {"loss"}
    assert arrays["hidden1.weight"].shape == (200, 200)


def test_a_layer_is_fused_over_those_who_have_it_and_stays_where_nobody_has() -> None:
    models = {"L": mlp(0.5, depth=3), "S": mlp(0.5, depth=1, seed=1)}
    inner = strategy_of(HeteroFL, models)
    strategy = FedWSA(inner)
    large, small = begun(strategy, inner, models)
    names = ("hidden0.weight", "hidden1.weight", "hidden2.weight", "head.weight")
    assert strategy.target.names == names
    before = strategy.target
    trained = mlp(0.5, depth=3, seed=2)
    strategy.aggregate_train(1, [answer(large, trained, 3), answer(small, models["S"], 1)])
    deep, shallow = WeightScope.measure(trained), WeightScope.measure(models["S"])
    both = WeightScope.fuse([deep.only(shallow.names), shallow], [3, 1])
    expected = torch.stack([both.variance[0], *deep.variance[1:3], both.variance[1]])
    torch.testing.assert_close(strategy.target.variance, expected)
    # Only the shallow one answers: hidden1 and hidden2 keep the target that they had.
    strategy = FedWSA(inner)
    large, small = begun(strategy, inner, models)
    strategy.aggregate_train(1, [answer(small, models["S"], 1)])
    torch.testing.assert_close(strategy.target.variance[1:3], before.variance[1:3])
    torch.testing.assert_close(strategy.target.variance[0], shallow.variance[0])
    assert np.isnan(strategy.report.kl[1])


def test_without_several_sizes_nothing_is_announced() -> None:
    shapes = {"model": {k: tuple(t.shape) for k, t in net().state_dict().items()}}
    for inner in (FedAvg(), HeteroFL(shapes, size_of=lambda node: "model")):
        strategy = FedWSA(inner)
        arrays = messages.to_arrays(exchange.travelling_state(net()))
        first, *_ = strategy.configure_train(1, arrays, ConfigRecord(), Nodes(2))
        assert not {"wsa-normalise", "wsa-partial"} & set(first.content["config"])


def test_rescaling_the_average_is_refused_among_sizes() -> None:
    models = {"L": mlp(1.0), "S": mlp(0.5)}
    with pytest.raises(ValueError, match="align='after' needs models of one size"):
        FedWSA(strategy_of(HeteroFL, models), align="after")


def test_clients_without_presence_are_named_as_the_cause() -> None:
    models = {"L": mlp(1.0), "S": mlp(0.5)}
    inner = strategy_of(HeteroFL, models)
    strategy = FedWSA(inner)
    large, _ = begun(strategy, inner, models)
    reply = answer(large, models["L"], 1)
    metrics = {k: v for k, v in reply.content["metrics"].items() if k != "wsa-present"}
    bare = RecordDict({"arrays": reply.content["arrays"], "metrics": MetricRecord(metrics)})
    with pytest.raises(ValueError, match="lack wsa-present for 3 layers"):
        strategy.aggregate_train(1, [Message(bare, reply_to=large)])
