"""BatchNorm's statistics under optimisers of the server: the clients' mean, whatever the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedYogi,
    QFedAvg,
    Strategy,
)
from safetensors.numpy import load_file

from experiments.commands.simulate import simulate
from fedwsa.algorithms.averaging import averages_by
from fedwsa.algorithms.guard.replies import Rules
from fedwsa.algorithms.partial_average import PartialAverage
from fedwsa.algorithms.statistics import AveragedStatistics, spared
from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.schema.compose import compose
from fedwsa.simulation.reduce import AveragedReplies
from fedwsa.wire.arrays import record_of
from tests.given.fedwsa import Nodes

OPTIMISERS = {
    "fedavgm": lambda: FedAvgM(server_momentum=0.9),
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "qfedavg": lambda: QFedAvg(client_learning_rate=0.1, q=1.0),
}
BUFFERS = ["norm.running_mean", "norm.running_var"]


def model(weight: float, mean: float, variance: float) -> ArrayRecord:
    values = {"weight": [weight, -weight], BUFFERS[0]: [mean], BUFFERS[1]: [variance]}
    return record_of({name: np.array(v, np.float32) for name, v in values.items()})


def one_round(
    strategy: Strategy, sent: ArrayRecord, trained: dict[int, ArrayRecord], number: int = 1
) -> dict[str, list[float]]:
    """Clients with 1, 3, … examples answer with what they trained."""
    config = ConfigRecord({"server-round": number})
    asked = strategy.configure_train(number, sent, config, Nodes(len(trained)))
    replies = [
        reply(message, arrays, n)
        for message, (n, arrays) in zip(asked, trained.items(), strict=True)
    ]
    arrays, _ = strategy.aggregate_train(number, replies)
    return {name: array.numpy().tolist() for name, array in arrays.items()}


def reply(message: Message, arrays: ArrayRecord, examples: int) -> Message:
    metrics = MetricRecord({"num-examples": examples, "train_loss": 0.5 * examples})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@pytest.mark.usefixtures("task_identity")
def test_momentum_alone_carries_a_variance_below_zero() -> None:
    # From 1 to the clients' 0.1: a step of 0.9 arrives there; the clients stay, and momentum goes
    # on by 0.9·0.9 = 0.81, to 0.1 − 0.81 = −0.71.
    ends = {}
    for name, strategy in {
        "alone": FedAvgM(server_momentum=0.9),
        "spared": AveragedStatistics(FedAvgM(server_momentum=0.9), BUFFERS),
    }.items():
        answers = {1: model(1.0, 0.0, 0.1), 3: model(1.0, 0.0, 0.1)}
        first = one_round(strategy, model(1.0, 0.0, 1.0), answers)
        assert first[BUFFERS[1]] == pytest.approx([0.1])
        second = one_round(strategy, model(1.0, 0.0, 0.1), answers, 2)
        ends[name] = second[BUFFERS[1]]
    assert ends["alone"] == pytest.approx([-0.71])
    assert ends["spared"] == pytest.approx([0.1])


@pytest.mark.usefixtures("task_identity")
@pytest.mark.parametrize("name", OPTIMISERS)
def test_statistics_are_the_mean_by_examples_and_weights_go_as_without(name: str) -> None:
    answers = {1: model(2.0, 1.0, 1.0), 3: model(4.0, -1.0, 3.0)}
    weights = {n: ArrayRecord({"weight": arrays["weight"]}) for n, arrays in answers.items()}
    sent = model(1.0, 0.0, 9.0)
    alone = one_round(OPTIMISERS[name](), ArrayRecord({"weight": sent["weight"]}), weights)
    strategy = spared(OPTIMISERS[name](), BUFFERS)
    found = one_round(strategy, sent, answers)
    assert found["weight"] == alone["weight"]
    assert found[BUFFERS[0]] == pytest.approx([(1 * 1.0 + 3 * -1.0) / 4])
    assert found[BUFFERS[1]] == pytest.approx([(1 * 1.0 + 3 * 3.0) / 4])
    assert list(found) == list(sent)  # privacy wrappers pair arrays by their order


@pytest.mark.usefixtures("task_identity")
def test_clients_get_the_statistics_and_answers_stay_as_they_came() -> None:
    sent = model(1.0, 0.5, 9.0)
    strategy = spared(QFedAvg(client_learning_rate=0.1), BUFFERS)
    asked = list(strategy.configure_train(1, sent, ConfigRecord(), Nodes(2)))
    assert asked[0].content is asked[1].content  # so that it is stored once
    got = asked[0].content["arrays"]
    assert {k: a.numpy().tolist() for k, a in got.items()} == {
        k: a.numpy().tolist() for k, a in sent.items()
    }
    replies = [reply(message, model(2.0, 1.0, 1.0), 1) for message in asked]
    strategy.aggregate_train(1, replies)
    assert [list(r.content["arrays"]) for r in replies] == [list(sent)] * 2


def private(inner: Strategy) -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(
        inner, noise_multiplier=1e-12, clipping_norm=1e6, num_sampled_clients=2
    )


@pytest.mark.usefixtures("task_identity")
@pytest.mark.parametrize("name", OPTIMISERS)
def test_within_a_privacy_wrapper_too(name: str) -> None:
    sent, answers = model(1.0, 0.0, 9.0), {1: model(2.0, 1.0, 1.0), 3: model(4.0, -1.0, 3.0)}
    strategy = spared(private(OPTIMISERS[name]()), BUFFERS)
    found = one_round(strategy, sent, answers)
    assert found["weight"] != [1.0, -1.0]
    assert found[BUFFERS[1]] == pytest.approx([(1 * 1.0 + 3 * 3.0) / 4], abs=1e-4)


@pytest.mark.usefixtures("task_identity")
@pytest.mark.parametrize("name", OPTIMISERS)
def test_scopes_among_the_arrays_are_averaged_too(name: str) -> None:
    strategy = FedWSA(private(OPTIMISERS[name]()), source="noised", layers="weight")
    layer = record_of({"weight": np.ones((2, 2), np.float32)})
    asked = strategy.configure_train(1, layer, ConfigRecord(), Nodes(2))
    replies = []
    for message, mean in zip(asked, [0.5, 1.5], strict=True):
        scope = np.array([[mean], [mean**2 + 0.25]], np.float32)  # moments
        arrays = record_of({"weight": np.full((2, 2), 2.0, np.float32), "wsa-scope": scope})
        replies.append(reply(message, arrays, 4))
    strategy.aggregate_train(1, replies)
    # The mean of the moments: E x² = (0.5² + 1.5²)/2 + 0.25 = 1.5, so that the variance is 0.5.
    assert strategy.target.mean.tolist() == pytest.approx([1.0], abs=1e-4)
    assert strategy.target.variance.tolist() == pytest.approx([0.5], abs=1e-4)


@pytest.mark.usefixtures("task_identity")
def test_the_mean_of_partial_averages_is_the_mean() -> None:
    sent, answers = model(1.0, 0.0, 9.0), {1: model(2.0, 1.0, 1.0), 3: model(4.0, -1.0, 3.0)}
    strategy = spared(FedAdam(), BUFFERS)
    whole = one_round(strategy, sent, answers)
    assert averages_by(strategy) == averages_by(FedWSA(strategy)) == "num-examples"
    asked = list(strategy.configure_train(2, sent, ConfigRecord(), Nodes(2)))
    parts = []
    for message, (n, arrays) in zip(asked, answers.items(), strict=True):
        average = PartialAverage(Rules())
        assert average.add(reply(message, arrays, n).content, message.content) is None
        parts.append(Message(average.content(), reply_to=message))
    arrays, _ = strategy.aggregate_train(2, AveragedReplies(parts, []))
    for name in BUFFERS:
        assert arrays[name].numpy().tolist() == pytest.approx(whole[name])


@pytest.mark.usefixtures("task_identity")
def test_a_round_without_an_answer_brings_nothing() -> None:
    strategy = spared(FedAdam(), BUFFERS)
    list(strategy.configure_train(1, model(1.0, 0.0, 1.0), ConfigRecord(), Nodes(2)))
    assert strategy.aggregate_train(1, [])[0] is None


def test_only_optimisers_of_models_with_statistics_are_wrapped() -> None:
    for make in OPTIMISERS.values():
        assert isinstance(spared(make(), BUFFERS), AveragedStatistics)
        assert not isinstance(spared(make(), []), AveragedStatistics)
    for strategy in (FedAvg(), FedMedian()):
        assert spared(strategy, BUFFERS) is strategy
    with pytest.raises(ValueError, match="align='after' does not go with FedAvgM"):
        FedWSA(spared(FedAvgM(), BUFFERS), align="after")


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "qfedavg"])
def test_a_network_with_batch_norm_learns_under_them(name: str, tmp_path: Path) -> None:
    overrides = [
        *("model=resnet20", "model.width=0.25", "model.norm=batch", f"strategy={name}", "wsa=on"),
        *("rounds=5", "clients.count=4", "local.epochs=1", "partition=iid", "runtime.workers=1"),
        f"cache_dir={tmp_path}",
    ]
    result = simulate(compose(overrides), tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert np.isfinite(history["loss"]).all()
    assert history["accuracy"].max() > 0.3  # of ten classes
    assert result["failed"] == 0
    arrays = load_file(tmp_path / "run" / "model.safetensors")
    variances = [a for key, a in arrays.items() if key.endswith("running_var")]
    assert variances
    assert all((a > 0).all() for a in variances)
