"""FedWSA and ScopeAlignment, the two halves, over hand-made Flower messages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    Krum,
)
from torch import nn

from fedwsa import FedWSA, ScopeAlignment, WeightScope
from fedwsa.models import exchange
from fedwsa.wire import messages
from tests.given.fedwsa import LAYERS, Nodes, answer, arrays_of, content, net

pytestmark = pytest.mark.usefixtures("task_identity")


def configure(strategy: FedWSA, model: nn.Module, nodes: int = 3, number: int = 1) -> list[Message]:
    config = ConfigRecord({"server-round": number})
    return list(strategy.configure_train(number, arrays_of(model), config, Nodes(nodes)))


def one_round(strategy: FedWSA, models: list[nn.Module], examples: list[int], number: int = 1):
    sent = configure(strategy, net(), len(models), number)
    replies = [answer(m, model, n) for m, model, n in zip(sent, models, examples, strict=True)]
    return strategy.aggregate_train(number, replies)


def test_around_a_privacy_wrapper_clients_report_no_scopes() -> None:
    private = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=1e-9, clipping_norm=1e6, num_sampled_clients=2
    )
    strategy = FedWSA(private, strength=1.0)
    sent = configure(strategy, net(), 2)
    replies = [answer(m, net(seed), 1) for seed, m in enumerate(sent, 1)]
    assert [set(r.content["metrics"]) for r in replies] == [{"num-examples", "loss"}] * 2
    arrays, _ = strategy.aggregate_train(1, replies)
    measured = WeightScope.measure(messages.to_tensors(arrays))
    assert strategy.report is not None
    torch.testing.assert_close(strategy.report.fused.mean, measured.mean)
    assert FedWSA(private, source="reported").source == "reported"  # asked for, and clear
    assert FedWSA(FedAvg()).source == "reported"


def test_the_message_carries_the_initial_scope_beside_what_the_strategy_sends() -> None:
    strategy = FedWSA(FedAvg(), strength=3.0, fusion="mean_std", reduction="entries", floor=1e-3)
    first, *others = configure(strategy, net())
    scope = WeightScope.measure(net())
    assert first.content["wsa-target"]["mean"] == scope.mean.tolist()
    assert first.content["wsa-target"]["variance"] == scope.variance.tolist()
    assert dict(first.content["config"]) == {
        "server-round": 1,
        "wsa-layers": LAYERS,
        "wsa-fusion": "mean_std",
        "wsa-strength": 3.0,
        "wsa-reduction": "entries",
        "wsa-floor": 1e-3,
    }
    # Client mods want exactly one of each; and one content for all, so that it is encoded once.
    assert len(first.content.array_records) == len(first.content.config_records) == 1
    assert all(other.content is first.content for other in others)


def test_the_strategy_s_own_record_is_not_written_to() -> None:
    config = ConfigRecord()
    strategy = FedWSA(FedAvg())
    sent = list(strategy.configure_train(1, arrays_of(net()), config, Nodes(2)))
    list(strategy.configure_train(2, arrays_of(net()), config, Nodes(2)))
    assert "wsa-layers" not in config
    assert sent[0].content["config"]["server-round"] == 1


@pytest.mark.parametrize("fusion", ["moments", "mean_variance", "mean_std"])
def test_the_next_target_is_the_clients_scopes_fused_by_examples(fusion: str) -> None:
    models, examples = [net(1), net(2), net(3)], [10, 30, 5]
    strategy = FedWSA(FedAvg(), fusion=fusion)
    arrays, metrics = one_round(strategy, models, examples)
    expected = WeightScope.fuse([WeightScope.measure(m) for m in models], examples, fusion)
    torch.testing.assert_close(strategy.target.mean, expected.mean)
    torch.testing.assert_close(strategy.target.variance, expected.variance)
    assert set(metrics) == {"loss"}
    # The average of three independent networks is narrower than their fused scope: the cross
    # terms of Σ p_k w_k cancel, leaving Σ p_k² σ_k² of Σ p_k σ_k².
    averaged = WeightScope.measure(messages.to_tensors(arrays))
    torch.testing.assert_close(strategy.report.averaged.variance, averaged.variance)
    assert (averaged.variance < 0.8 * expected.variance).all()
    sent = configure(strategy, net(), number=2)
    assert sent[0].content["wsa-target"]["mean"] == strategy.target.mean.tolist()


@pytest.mark.parametrize("inner", [FedAvg(), FedMedian(), FedTrimmedAvg(beta=0.2), FedAdam()])
def test_the_scope_is_fused_under_strategies_that_do_not_average_arrays(inner) -> None:
    models, examples = [net(s) for s in range(1, 6)], [10, 20, 30, 5, 7]
    strategy = FedWSA(inner)
    one_round(strategy, models, examples)
    expected = WeightScope.fuse([WeightScope.measure(m) for m in models], examples)
    torch.testing.assert_close(strategy.target.variance, expected.variance)


def test_krum_passes_the_selected_client_s_scope() -> None:
    near = net(1)
    models = [near, *(net(1) for _ in range(3)), net(9)]
    for i, model in enumerate(models[1:4]):
        model[0].weight.data += 0.001 * (i + 1)
    strategy = FedWSA(Krum(num_malicious_nodes=1))
    arrays, _ = one_round(strategy, models, [10] * 5)
    selected = WeightScope.measure(messages.to_tensors(arrays))
    torch.testing.assert_close(strategy.target.variance, selected.variance)


def test_mean_kl_of_the_clients_is_reported() -> None:
    models, examples = [net(1), net(2)], [1, 3]
    strategy = FedWSA(FedAvg())
    one_round(strategy, models, examples)
    start = WeightScope.measure(net())
    kl = [WeightScope.measure(m).kl(start) for m in models]
    torch.testing.assert_close(
        torch.tensor(strategy.report.kl, dtype=torch.float64), (kl[0] + 3 * kl[1]) / 4
    )


@pytest.mark.parametrize("target", ["initial", WeightScope.of(LAYERS, [0.1, 0.2], [1.0, 2.0])])
def test_a_target_that_stays(target) -> None:
    strategy = FedWSA(FedAvg(), target=target)
    one_round(strategy, [net(1), net(2)], [1, 1])
    expected = WeightScope.measure(net()) if target == "initial" else target
    assert strategy.target.variance.tolist() == expected.variance.tolist()
    assert strategy.report.fused.variance.tolist() != expected.variance.tolist()


def test_align_after_gives_the_average_the_fused_scope() -> None:
    models = [net(1), net(2)]
    plain, _ = one_round(FedWSA(FedAvg()), models, [1, 1])
    strategy = FedWSA(FedAvg(), align="after")
    arrays, _ = one_round(strategy, models, [1, 1])
    reached = WeightScope.measure(messages.to_tensors(arrays))
    torch.testing.assert_close(reached.variance, strategy.target.variance, rtol=1e-4, atol=1e-7)
    assert np.array_equal(arrays["0.bias"].numpy(), plain["0.bias"].numpy())
    assert {k: a.dtype for k, a in arrays.items()} == {k: a.dtype for k, a in plain.items()}


def test_identical_clients_are_left_as_they_are_by_align_after() -> None:
    arrays, _ = one_round(FedWSA(FedAvg(), align="after"), [net(1)] * 3, [1, 2, 3])
    for name, tensor in exchange.travelling_state(net(1)).items():
        np.testing.assert_allclose(arrays[name].numpy(), tensor.numpy(), rtol=1e-5, atol=1e-7)


def test_when_all_clients_fail_the_target_stays() -> None:
    strategy = FedWSA(FedAvg())
    sent = configure(strategy, net())
    before = strategy.target
    failed = [Message(Error(2, "broken"), reply_to=m) for m in sent]
    assert strategy.aggregate_train(1, failed) == (None, None)
    assert strategy.target is before


def test_clients_without_the_other_half_are_named_as_the_cause() -> None:
    strategy = FedWSA(FedAvg())
    content = RecordDict({"arrays": arrays_of(net()), "metrics": MetricRecord({"num-examples": 1})})
    replies = [Message(content, reply_to=m) for m in configure(strategy, net())]
    with pytest.raises(ValueError, match=r"ScopeAlignment\.end\(\)"):
        strategy.aggregate_train(1, replies)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "strength must be zero or a positive"),
        ({"strength": math.nan}, "strength must be zero or a positive"),
        ({"floor": 0.0}, "floor must be a positive"),
        ({"fusion": "median"}, "fusion must be one of moments"),
        ({"align": "before"}, "align must be one of none, after"),
        ({"reduction": "mean"}, "reduction must be one of layer, entries"),
        ({"target": "best"}, "target must be one of fused, initial"),
    ],
)
def test_impossible_settings_are_refused_at_construction(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        FedWSA(FedAvg(), **arguments)


def test_rescaling_is_refused_for_a_strategy_with_its_own_copy_of_the_model() -> None:
    with pytest.raises(ValueError, match="does not go with FedAvgM"):
        FedWSA(FedAvgM(), align="after")


def test_the_default_strength_depends_on_the_reduction() -> None:
    assert FedWSA(FedAvg()).strength == 1.0
    assert FedWSA(FedAvg(), normalise=True).strength == 10.0
    for normalise in (False, True):
        strategy = FedWSA(FedAvg(), reduction="entries", normalise=normalise)
        assert strategy.strength == 0.01


def test_a_target_of_another_model_is_refused() -> None:
    strategy = FedWSA(FedAvg(), target=WeightScope.of(["conv.weight"], [0.0], [1.0]))
    with pytest.raises(ValueError, match=r"lacks: \['conv\.weight'\]"):
        configure(strategy, net())


def test_evaluation_and_summary_are_the_strategy_s_own(caplog: pytest.LogCaptureFixture) -> None:
    plain, wrapped = FedAvg(fraction_evaluate=1.0), FedWSA(FedAvg(fraction_evaluate=1.0))
    sent = [
        list(s.configure_evaluate(1, arrays_of(net()), ConfigRecord(), Nodes(2)))
        for s in (plain, wrapped)
    ]
    assert [dict(m.content["config"]) for m in sent[0]] == [
        dict(m.content["config"]) for m in sent[1]
    ]
    metrics = RecordDict({"metrics": MetricRecord({"num-examples": 2, "accuracy": 0.5})})
    replies = [Message(metrics, reply_to=m) for m in sent[1]]
    assert wrapped.aggregate_evaluate(1, replies) == plain.aggregate_evaluate(1, replies)
    with caplog.at_level("INFO", logger="flwr"):
        wrapped.summary()
    assert "FedWSA: strength 1," in caplog.text


# --- the client half -----------------------------------------------------------------------


def test_without_instructions_the_objective_does_nothing() -> None:
    alignment = ScopeAlignment(net(), {"config": {"server-round": 1}})
    alignment.add_gradient()
    assert alignment.end() == {}


def test_training_towards_a_target_alone_reaches_it() -> None:
    model = net()
    model[2].bias.requires_grad_(False)
    alignment = ScopeAlignment(model, content())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        alignment.add_gradient()
        optimizer.step()
    metrics = alignment.end()
    assert max(metrics["wsa-kl"]) < 1e-6
    assert metrics["wsa-mean"] == pytest.approx([0.1, 0.1], abs=1e-4)
    # By moments the spread is σ² + μ² = 0.04 + 0.01.
    assert metrics["wsa-spread"] == pytest.approx([0.05, 0.05], abs=1e-4)


def test_strength_zero_only_measures() -> None:
    model = net()
    alignment = ScopeAlignment(model, content(strength=0.0))
    alignment.add_gradient()
    assert all(p.grad is None for p in model.parameters())
    assert len(alignment.end()["wsa-kl"]) == 2


def test_a_layer_that_is_no_parameter_is_named() -> None:
    with pytest.raises(ValueError, match=r"aligns 7\.weight, which is no parameter"):
        ScopeAlignment(net(), content(names=["7.weight"]))


class Modest(FedAvg):
    """A model, and no metrics; the old one where nobody answered."""

    def configure_train(self, server_round, arrays, config, grid):
        self.arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, _ = super().aggregate_train(server_round, replies)
        return arrays or self.arrays, None


def test_a_model_without_metrics_is_not_taken_for_a_round_without_answers() -> None:
    strategy = FedWSA(Modest())
    with pytest.raises(ValueError, match=r"must report ScopeAlignment\.end\(\) in their metrics"):
        one_round(strategy, [net(1), net(2)], [1, 1])
    configure(strategy, net(), 2)
    arrays, metrics = strategy.aggregate_train(1, iter([]))
    assert (arrays, metrics) == (strategy.arrays, None)
    measured = FedWSA(Modest(), source="measured")  # which asks clients for nothing
    arrays, metrics = one_round(measured, [net(1), net(2)], [1, 1])
    assert metrics is None
    assert measured.report is not None
