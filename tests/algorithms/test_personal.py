"""Strategies that leave a part of the model with each client."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import clients.app
from experiments.commands.simulate import simulate
from fedwsa.config.component import ConfigError
from fedwsa.models import build_model, exchange
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from fedwsa.wire import messages

TINY = ["rounds=3", "clients.count=3", "local.epochs=1", "model.width=0.1", "seed=3"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def configured(cache: str, *overrides: str) -> Config:
    return compose([*TINY, f"cache_dir={cache}", *overrides])


def watched(config: Config, folder: Path) -> ClientApp:
    """Our client, which also writes down what it sends and what it keeps."""
    app = ClientApp()
    ours = clients.app.build(config)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = ours(message, context)
        number = message.content["config"]["server-round"]
        client = context.node_config["partition-id"]
        noted = {
            "sent": {
                k: sum(t.sum().item() for t in messages.to_tensors(r).values())
                for k, r in reply.content.array_records.items()
            },
            "names": [list(r) for r in reply.content.array_records.values()],
            "received": list(message.content["arrays"]),
            "kept": {k: list(r) for k, r in context.state.array_records.items()},
        }
        (folder / f"{number}-{client}.json").write_text(json.dumps(noted))
        return reply

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return ours(message, context)

    return app


@pytest.mark.parametrize(
    ("overrides", "personal"),
    [
        (["strategy=fedper"], {"head.weight", "head.bias"}),
        (["strategy=fedper", "strategy.args.personal=hidden1"], {"hidden1.weight", "hidden1.bias"}),
        (["strategy=local"], None),
    ],
)
def test_what_is_personal_never_leaves_its_client(
    cache: str, tmp_path: Path, overrides: list[str], personal: set[str] | None
) -> None:
    config = configured(cache, *overrides)
    simulate(config, tmp_path / "run", watched(config, tmp_path))
    names = set(exchange.travelling_state(build_model(config.model, ImageShape(1, 8, 8), 10, 3)))
    personal = names if personal is None else personal
    notes = [json.loads(f.read_text()) for f in tmp_path.glob("*.json")]
    assert len(notes) == 9
    for note in notes:
        assert [set(own) for own in note["names"]] == [names - personal]
        assert set(note["received"]) == names - personal
        assert set(note["kept"]["personal"]) == personal


def test_local_training_is_training_without_the_others(cache: str, tmp_path: Path) -> None:
    """Another client's data makes no difference to what one keeps."""
    result = simulate(configured(cache, "strategy=local", "partition=iid"), tmp_path / "run")
    assert result["accuracy"] is None
    assert not (tmp_path / "run" / "model.safetensors").exists()
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["accuracy"].isna().all()
    assert 0.2 < history["client_accuracy_mean"].iloc[-1] <= 1
    # Three rounds of one client alone: FedAvg of that client, whose data are a third.
    losses = history["train_loss"]
    assert losses.is_monotonic_decreasing


def test_fedbn_keeps_weights_and_statistics_of_norms(cache: str, tmp_path: Path) -> None:
    data = [
        "dataset._target_=tests.given.small_images.small_images",
        "evaluation.clients_every=1",
    ]
    model = ["model=vgg8", "model.norm=batch", "model.width=0.05"]
    overrides = [o for o in TINY if "width" not in o]
    config = compose(
        [*overrides, "rounds=2", f"cache_dir={cache}", *data, *model, "strategy=fedbn"]
    )
    simulate(config, tmp_path / "run", watched(config, tmp_path))
    note = json.loads((tmp_path / "2-0.json").read_text())
    kept = set(note["kept"]["personal"])
    assert {"stage0_conv0_norm.weight", "stage0_conv0_norm.running_var"} <= kept
    assert all("_norm." in name for name in kept)
    assert not any("_norm." in name for name in note["names"][0])


def test_a_model_without_norms_is_refused(cache: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no normalisation layers to keep.*model=resnet20"):
        simulate(configured(cache, "strategy=fedbn"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nomatch", r"personal: matches no array; there are hidden0\.weight, hidden0\.bias, "),
        ('".*"', r"personal: leaves everything with the clients; that is strategy=local"),
    ],
)
def test_a_pattern_that_leaves_nothing_or_everything_is_refused(
    cache: str, tmp_path: Path, pattern: str, message: str
) -> None:
    config = configured(cache, "strategy=fedper", f"strategy.args.personal={pattern}")
    with pytest.raises(ConfigError, match=message):
        simulate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pattern", ["first", "second"])
def test_a_pattern_that_parts_tied_weights_is_refused(
    cache: str, tmp_path: Path, pattern: str
) -> None:
    odd = ["~model.depth", "~model.width", "model._target_=tests.given.odd_models.everything"]
    words = [o for o in TINY if "width" not in o] + odd + ["strategy=fedper", "rounds=1"]
    parted = compose([*words, f"cache_dir={cache}", f"strategy.args.personal={pattern}\\."])
    with pytest.raises(
        ConfigError, match=r"personal: first\.weight and second\.weight are one tied"
    ):
        simulate(parted, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    whole = compose([*words, f"cache_dir={cache}", "strategy.args.personal='(first|second)'"])
    simulate(whole, tmp_path / "run", watched(whole, tmp_path))
    kept = json.loads((tmp_path / "1-0.json").read_text())["kept"]["personal"]
    assert set(kept) == {"first.weight", "first.bias", "second.bias"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "strategy=dp_server_fixed local.optimiser=adam "
            "strategy.args.strategy._target_=fedwsa.algorithms.fednova.server.FedNova",
            r"local\.optimiser: FedNova counts steps of SGD",
        ),
        (
            "strategy=scaffold local.optimisers=[sgd,adam]",
            r"local\.optimisers: Scaffold counts steps of SGD",
        ),
        (
            "strategy=krum strategy.args.num_malicious_nodes=1",
            "Krum bears 1 of at least 5 clients a round; there are 3",
        ),
        (
            "strategy=bulyan strategy.args.num_malicious_nodes=1",
            "Bulyan bears 1 of at least 7 clients a round; there are 3",
        ),
        (
            "strategy=dp_server_fixed strategy.args.strategy._target_=nope.Mine",
            r"strategy\.args\.strategy\._target_: cannot import nope\.Mine",
        ),
    ],
)
def test_what_cannot_go_together_is_refused_before_the_first_round(
    cache: str, tmp_path: Path, overrides: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(configured(cache, *overrides.split()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [("local", "no weights are averaged"), ("centralised", "one model, trained in one place")],
)
def test_alignment_where_nothing_is_averaged_is_refused(
    cache: str, tmp_path: Path, strategy: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=rf"wsa: .* does not go with it: .*{reason}"):
        simulate(configured(cache, f"strategy={strategy}", "wsa=on"), tmp_path / "run")


def test_privacy_wrappers_want_whole_models(cache: str, tmp_path: Path) -> None:
    wrapped = ["strategy=dp_server_fixed", "strategy.args.strategy._target_="]
    for inner in (
        "fedwsa.algorithms.personal.fedper.FedPer",
        "fedwsa.algorithms.scaffold.server.Scaffold",
    ):
        config = configured(cache, wrapped[0], wrapped[1] + inner)
        with pytest.raises(ConfigError, match="needs clients that send one whole model"):
            simulate(config, tmp_path / "run")


def test_clients_clip_to_the_norm_that_they_are_told(cache: str, tmp_path: Path) -> None:
    """Clipped by the clients or by the server, with the same noise: the same model."""
    from safetensors.torch import load_file

    noise = ["strategy.args.clipping_norm=0.05", "strategy.args.noise_multiplier=0.001"]
    models = {}
    for side in ("server", "client"):
        config = configured(cache, f"strategy=dp_{side}_fixed", *noise, "runtime.cohort=4")
        simulate(config, tmp_path / side)
        models[side] = load_file(tmp_path / side / "model.safetensors")
    for name, value in models["server"].items():
        torch.testing.assert_close(models["client"][name], value, rtol=1e-5, atol=1e-7)
    begin = dict(build_model(config.model, ImageShape(1, 8, 8), 10, 3).named_parameters())
    squares = sum(((models["client"][k] - b.detach()) ** 2).sum() for k, b in begin.items())
    # Three rounds of at most 0.05 each, and the noise's few thousandths of it per entry.
    assert 0.05 < squares.sqrt() < 0.16
