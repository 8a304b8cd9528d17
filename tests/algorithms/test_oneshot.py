"""One-shot federated learning: over hand-made messages, then whole runs on digits."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from safetensors.torch import load_file
from torch import Tensor

from clients.app import build as client_app
from experiments.commands.simulate import simulate
from fedwsa.algorithms.guard.guard import Guard
from fedwsa.algorithms.oneshot.server import OneShot
from fedwsa.config.component import ConfigError
from fedwsa.config.places import options
from fedwsa.data.federated import open_federated
from fedwsa.merge.average import average
from fedwsa.merge.fisher import fisher
from fedwsa.merge.fisher_information import fisher_information
from fedwsa.merge.ugm import ugm
from fedwsa.models import build_model, exchange
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from fedwsa.wire import messages
from fedwsa.wire.names import FISHER, FISHER_LABELS, FISHER_LAYERS
from tests.given.fedwsa import Nodes

State = dict[str, Tensor]

START: State = {
    "w": torch.zeros(2, 3),
    "n.running_var": torch.ones(2),
}
TINY = ["rounds=1", "clients.count=3", "local.epochs=3", "model.width=0.1", "partition=iid"]
ONCE = [*TINY, "strategy=oneshot"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def taught(folder: Path, cache: str, *overrides: str) -> State:
    simulate(compose([f"cache_dir={cache}", "runtime.workers=1", *overrides]), folder)
    return load_file(folder / "model.safetensors")


# --- hand-made messages ----------------------------------------------------------------------


def asked(strategy: Guard | OneShot, nodes: int = 3) -> list[Message]:
    sent = list(
        strategy.configure_train(1, messages.to_arrays(START), ConfigRecord(), Nodes(nodes))
    )
    return sorted(sent, key=lambda m: m.metadata.dst_node_id)


def reply(message: Message, value: float, examples: int, known: Tensor | None) -> Message:
    model = {"w": torch.full((2, 3), value), "n.running_var": torch.full((2,), value)}
    content = RecordDict(
        {
            "arrays": messages.to_arrays(model),
            "metrics": MetricRecord({"num-examples": examples, "train_loss": 0.5}),
        }
    )
    if known is not None:
        content[FISHER] = messages.to_arrays({"w": known})
    return Message(content, reply_to=message)


@pytest.mark.usefixtures("task_identity")
def test_clients_say_how_sure_they_are_only_where_the_operator_asks() -> None:
    [plain, *_] = asked(OneShot(average))
    assert FISHER_LABELS not in plain.content["config"]
    [message, *_] = asked(OneShot(fisher, buffers=["n.running_var"], labels="drawn"))
    config = message.content["config"]
    assert config[FISHER_LABELS] == "drawn"
    assert config[FISHER_LAYERS] == ["w"]


@pytest.mark.usefixtures("task_identity")
def test_models_are_merged_by_examples_and_fisher_information() -> None:
    # Σ n F θ / Σ n F = (10·1·2 + 30·3·4)/(10·1 + 30·3) = 380/100; statistics by examples alone:
    # (10·2 + 30·4)/40.
    strategy = OneShot(fisher, buffers=["n.running_var"])
    sent = asked(strategy, 2)
    replies = [
        reply(sent[0], 2.0, 10, torch.full((2, 3), 1.0)),
        reply(sent[1], 4.0, 30, torch.full((2, 3), 3.0)),
    ]
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert metrics is not None
    np.testing.assert_allclose(arrays["w"].numpy(), 3.8, rtol=1e-6)
    np.testing.assert_allclose(arrays["n.running_var"].numpy(), 3.5, rtol=1e-6)
    assert metrics["train_loss"] == 0.5


@pytest.mark.usefixtures("task_identity")
def test_the_base_is_what_was_sent_and_options_are_bound() -> None:
    strategy = OneShot(functools.partial(ugm, prior=1.0), buffers=["n.running_var"])
    sent = asked(strategy, 2)
    nothing = torch.zeros(2, 3)
    # Without Fisher information, UGM adds the differences to what was sent up.
    given = [reply(m, v, 10, nothing) for m, v in zip(sent, (1.0, 3.0), strict=True)]
    arrays, _ = strategy.aggregate_train(1, given)
    assert arrays is not None
    np.testing.assert_allclose(arrays["w"].numpy(), 4.0)


def _without(content: RecordDict) -> None:
    del content[FISHER]


def _holding(**tensors: Tensor) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[FISHER] = messages.to_arrays(tensors)

    return change


@pytest.mark.usefixtures("task_identity")
@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (_without, "the reply lacks fisher"),
        (_holding(w=torch.full((2, 3), -1e-9)), "fisher: w has negative entries"),
        (_holding(w=torch.full((2, 3), np.nan)), "fisher: w is NaN or infinite"),
        (_holding(w=torch.full((2, 3), 1e30)), "fisher: w is absurdly large"),
        (_holding(w=torch.ones(3, 2)), r"fisher: w is \(3, 2\), not \(2, 3\)"),
        (_holding(w=torch.ones(2, 3).double()), "fisher: w is float64, not float32"),
        (_holding(v=torch.ones(2, 3)), "fisher: missing w"),
        (_holding(w=torch.ones(2, 3), v=torch.ones(1)), "fisher: unknown v"),
    ],
)
def test_a_lie_about_fisher_information_is_refused(
    lie: Callable[[RecordDict], None], reason: str
) -> None:
    guard = Guard(OneShot(fisher, buffers=["n.running_var"]))
    sent = asked(guard, 3)
    replies = [reply(m, 1.0, 10, torch.ones(2, 3)) for m in sent]
    lie(replies[1].content)
    arrays, _ = guard.aggregate_train(1, replies)
    assert guard.gathered is not None
    [incident] = guard.gathered.incidents
    assert (incident.node, incident.kind) == (sent[1].metadata.dst_node_id, "rejected")
    assert re.search(reason, incident.reason)
    assert arrays is not None  # the others' models are merged


@pytest.mark.usefixtures("task_identity")
def test_there_is_no_second_round() -> None:
    strategy = OneShot(average)
    with pytest.raises(ValueError, match="train once"):
        strategy.configure_train(2, messages.to_arrays(START), ConfigRecord(), Nodes(2))


@pytest.mark.usefixtures("task_identity")
@pytest.mark.parametrize("labels", ["observed", "drawn"])
def test_a_client_sends_the_fisher_information_of_its_model_on_its_samples(
    labels: str, cache: str
) -> None:
    config = compose([*ONCE, f"cache_dir={cache}", "skew=noise", "merge=fisher"])
    model = build_model(config.model, ImageShape(1, 8, 8), 10, seed=3)
    arrays = messages.to_arrays(exchange.travelling_state(model))
    strategy = OneShot(fisher, labels=labels)  # type: ignore[arg-type]
    [message, *_] = strategy.configure_train(1, arrays, ConfigRecord(), Nodes(2))
    context = Context(1, 1, {"partition-id": 2, "num-partitions": 3}, RecordDict(), {})
    answer = client_app(config)(message, context).content
    exchange.load_travelling(model, messages.to_tensors(answer["arrays"]))
    sent = messages.to_tensors(answer[FISHER])
    inputs, truth = _samples_of(config, 2)
    if labels == "observed":
        expected = fisher_information(model, inputs, truth)
        for name, value in expected.items():
            torch.testing.assert_close(sent[name], value, rtol=1e-5, atol=1e-10)
    else:  # another number of about that size, the same at each call
        assert sent.keys() == dict(model.named_parameters()).keys()
        assert all((value >= 0).all() for value in sent.values())


def _samples_of(config: Config, client: int) -> tuple[Tensor, Tensor]:
    from fedwsa.data.skew import skewed

    data = open_federated(config.data_spec)
    own = data.whole.train[data.split(client)[0]]
    seen = skewed(config.skew, own.inputs, config.seed, client, False)
    return data.whole.prepare(seen), own.labels


# --- whole runs ------------------------------------------------------------------------------


def test_averaged_it_is_one_round_of_fedavg(cache: str, tmp_path: Path) -> None:
    # To rounding: operators add up in double precision, Flower in single.
    once = taught(tmp_path / "once", cache, *ONCE)
    usual = taught(tmp_path / "usual", cache, *TINY, "strategy=fedavg")
    for name, value in usual.items():
        torch.testing.assert_close(once[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["average", "fisher", "ugm merge.prior=0.3"])
def test_one_client_keeps_its_model(method: str, cache: str, tmp_path: Path) -> None:
    alone = ["clients.count=1", "runtime.cohort=off"]
    merged = taught(tmp_path / "once", cache, *ONCE, *alone, *f"merge={method}".split())
    trained = taught(tmp_path / "usual", cache, *TINY, *alone, "strategy=fedavg")
    for name, value in trained.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["fisher", "ugm"])
def test_operators_that_need_fisher_information_run_with_wsa(
    method: str, cache: str, tmp_path: Path
) -> None:
    rest = [f"merge={method}", "strategy.args.labels=drawn", "wsa=on", "checkpoint.every=1"]
    config = compose([*ONCE, f"cache_dir={cache}", *rest, "local.epochs=10"])
    result = simulate(config, tmp_path / "run")
    assert result["failed"] == 0
    assert result["accuracy"] > 0.5  # ten classes
    assert (tmp_path / "run" / "scopes.csv").exists()


@pytest.mark.parametrize("method", sorted(options("merge")))
def test_every_operator_of_ours_merges_a_cohort(method: str, cache: str, tmp_path: Path) -> None:
    merged = taught(tmp_path / "run", cache, *ONCE, f"merge={method}")
    assert all(torch.isfinite(value).all() for value in merged.values())


def largest(
    models: Sequence[State], *, weights: Sequence[float] | None = None, power: float
) -> State:
    """A stranger's operator: the model with the most examples."""
    assert weights is not None
    return dict(models[int(np.argmax(np.array(weights) ** power))])


def wants_base_fisher(models: Sequence[State], *, base_fisher: State, weights: object) -> State:
    raise NotImplementedError


def test_a_stranger_s_operator_goes_by_its_path(cache: str, tmp_path: Path) -> None:
    own = ["merge._target_=tests.algorithms.test_oneshot.largest", "+merge.power=1.0"]
    merged = taught(tmp_path / "run", cache, *ONCE, *own)
    assert merged.keys() == taught(tmp_path / "usual", cache, *TINY).keys()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ("rounds=2", r"rounds: OneShot trains its clients once: set rounds=1, and local.epochs"),
        ("strategy=fedavg merge=fisher", "merge: FedAvg puts models together by its own rule"),
        ("merge=fisher merge.prior=-1", "merge.prior: .*greater than or equal to 0"),
        ("merge._target_=tests.algorithms.test_oneshot.largest", "merge.power: largest needs it"),
        ("merge._target_=tests.algorithms.test_oneshot.wants_base_fisher", "needs base_fisher"),
        ("merge._target_=builtins.print", "print takes no weights"),
        ("strategy.args.labels=true", "strategy.args.labels"),
        ("merge=fisher privacy.local={clipping_norm:1.0,epsilon:0.5}", "one noised model"),
        ("clients.sizes={S:0.5,L:0.5}", "averages models of one size"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_anything_is_written(
    overrides: str, reason: str, cache: str, tmp_path: Path
) -> None:
    config = compose([*ONCE, f"cache_dir={cache}", *overrides.split()])
    with pytest.raises(ConfigError, match=reason) as caught:
        simulate(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
