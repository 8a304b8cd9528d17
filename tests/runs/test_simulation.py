"""Whole runs in Flower's simulation on Ray: what repeats, what is left out, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.commands.simulate import simulate
from fedwsa import WeightScope
from fedwsa.config.component import ConfigError
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from server.rounds import RunError
from tests.given.run_folders import weights
from tests.given.simulation import faulty

pytestmark = pytest.mark.usefixtures("all_cores")

SMALL = ["rounds=3", "clients.count=6", "clients.fraction=0.5", "local.epochs=1", "local=differing"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def aligned(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FedAvg+WSA with two workers; several tests look at its folder."""
    folder = tmp_path_factory.mktemp("aligned") / "run"
    simulate(configured(cache, "wsa=on", "runtime.workers=2"), folder, pictures=True)
    return folder


def configured(cache: str, *overrides: str) -> Config:
    return compose([*SMALL, f"cache_dir={cache}", *overrides])


def equal(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def history(folder: Path) -> str:
    return (folder / "history.csv").read_text()


def test_a_run_repeats_to_the_bit(aligned: Path, cache: str, tmp_path: Path) -> None:
    simulate(configured(cache, "wsa=on", "runtime.workers=2"), tmp_path)
    assert history(tmp_path) == history(aligned)
    assert (tmp_path / "scopes.csv").read_text() == (aligned / "scopes.csv").read_text()
    assert equal(tmp_path, aligned)


def test_strength_zero_is_fedavg_to_the_bit_and_another_strength_is_not(
    aligned: Path, cache: str, tmp_path: Path
) -> None:
    simulate(configured(cache, "wsa=off"), tmp_path / "off")
    simulate(configured(cache, "wsa=on", "wsa.strength=0"), tmp_path / "zero")
    assert equal(tmp_path / "off", tmp_path / "zero")
    off, zero = (pd.read_csv(tmp_path / f / "history.csv") for f in ("off", "zero"))
    traffic = ["bytes_down", "bytes_up", "simulated_seconds"]
    pd.testing.assert_frame_equal(off.drop(columns=traffic), zero.drop(columns=traffic))
    # Of three layers mean and variance go down to three clients; up come three numbers a layer.
    assert (zero["bytes_down"] - off["bytes_down"]).tolist() == [3 * 3 * 2 * 8] * 3
    assert (zero["bytes_up"] - off["bytes_up"]).tolist() == [3 * 3 * 3 * 8] * 3
    assert not equal(tmp_path / "off", aligned)
    cohorts = [pd.read_csv(f / "history.csv")["cohort"] for f in (tmp_path / "off", aligned)]
    assert cohorts[0].tolist() == cohorts[1].tolist()
    assert len(set(cohorts[0])) > 1
    assert not (tmp_path / "off" / "scopes.csv").exists()


def test_the_run_folder_says_all_that_is_needed_to_repeat_it(aligned: Path, cache: str) -> None:
    present = {f.name for f in aligned.iterdir()}
    assert present == {
        *("config.yaml", "environment.json", "partition.json", "history.csv", "timing.csv"),
        *("scopes.csv", "result.json", "model.safetensors", "curves.png", "partition.png"),
        *("run.log", "client_scores.csv", "events.jsonl"),
    }
    result = json.loads((aligned / "result.json").read_text())
    table = pd.read_csv(aligned / "history.csv")
    assert table["round"].tolist() == [1, 2, 3]
    assert result["rounds"] == 3
    assert result["accuracy"] == table["accuracy"].iloc[-1]
    assert result["client_accuracy_worst10"] <= result["client_accuracy_mean"] <= 1
    assert result["failed"] == 0
    # Clients evaluate every fifth round and after the last.
    assert table["client_accuracy_mean"].notna().tolist() == [False, False, True]
    environment = json.loads((aligned / "environment.json").read_text())
    assert environment["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    partition = json.loads((aligned / "partition.json").read_text())
    assert len(partition["indices"]) == len(partition["label_counts"]) == 6
    from omegaconf import OmegaConf

    stored = OmegaConf.to_container(OmegaConf.load(aligned / "config.yaml"))
    again = Config.model_validate(stored)
    settled = ["runtime.gpus_per_worker=0.0", "runtime.cohort=off", "device=cpu"]
    assert again == configured(cache, "wsa=on", "runtime.workers=2", *settled)


def test_a_folder_that_holds_a_run_is_not_written_over(aligned: Path, cache: str) -> None:
    before = history(aligned)
    with pytest.raises(ConfigError, match="holds a run already; name another folder"):
        simulate(configured(cache, "rounds=1"), aligned)
    assert history(aligned) == before


def test_scopes_tell_the_fused_scope_the_average_s_and_the_kl(aligned: Path, cache: str) -> None:
    table = pd.read_csv(aligned / "scopes.csv")
    assert table["layer"].tolist() == ["hidden0.weight", "hidden1.weight", "head.weight"] * 3
    last = table[table["round"] == 3]
    final = WeightScope.measure(weights(aligned))
    measured = dict(zip(final.names, final.std.tolist(), strict=True))  # a file has its own order
    expected = [measured[name] for name in last["layer"]]
    np.testing.assert_allclose(last["averaged_std"], expected, rtol=1e-6)
    # By moments σ̃² = Σ p(σ² + (μ − μ̃)²) is at least the variance of the averaged weights.
    assert (table["fused_std"] >= table["averaged_std"]).all()
    assert (table["client_kl"] >= 0).all()


def test_the_run_learned(aligned: Path, cache: str) -> None:
    table = pd.read_csv(aligned / "history.csv")
    assert table["accuracy"].iloc[-1] > table["accuracy"].iloc[0]
    assert table["train_loss"].iloc[-1] < table["train_loss"].iloc[0]
    initial = build_model(configured(cache).model, ImageShape(1, 8, 8), 10, seed=0).state_dict()
    assert all(not torch.equal(initial[k], w) for k, w in weights(aligned).items())


def test_bad_clients_are_counted_named_and_left_out_of_the_average(
    cache: str, tmp_path: Path
) -> None:
    faults = {0: "raise", 1: "nan", 2: "shape", 4: "examples", 5: "loss"}
    config = configured(cache, "rounds=2", "clients.fraction=1", "wsa=on")
    result = simulate(config, tmp_path / "faulty", faulty(config, faults))
    assert result["failed"] == 2 * 5
    table = pd.read_csv(tmp_path / "faulty" / "history.csv")
    assert table["failed"].tolist() == ["0 1 2 4 5"] * 2
    log = (tmp_path / "faulty" / "run.log").read_text()
    for line in (
        "round 1, train: client 0 failed: ",
        "the battery of 127.0.0.1 is empty",  # Ray keeps to this machine
        "round 2, train: client 1 rejected: wrong arrays: hidden0.bias is NaN or infinite",
        "client 2 rejected: wrong arrays: hidden0.bias is (199,), not (200,)",
        "client 4 rejected: num-examples must be positive",
        "client 5 rejected: the metrics have no number train_loss",
    ):
        assert line in log
    # What is left is client 3 alone: the average of one is that client's own model.
    alone = configured(cache, "rounds=2", "clients.fraction=1", "wsa=on")
    others = dict.fromkeys((0, 1, 2, 4, 5), "raise")
    simulate(alone, tmp_path / "alone", faulty(alone, others))
    assert equal(tmp_path / "faulty", tmp_path / "alone")


def test_when_all_clients_fail_the_run_ends_and_keeps_its_history(
    cache: str, tmp_path: Path
) -> None:
    config = configured(cache, "clients.fraction=1")
    with pytest.raises(RunError, match="round 1: all 6 clients failed in training"):
        simulate(config, tmp_path, faulty(config, dict.fromkeys(range(6), "raise")))
    assert history(tmp_path).startswith("round,accuracy")
    assert not (tmp_path / "result.json").exists()


def test_a_strategy_that_raises_is_named_with_its_hook(cache: str, tmp_path: Path) -> None:
    stranger = ["strategy._target_=tests.given.stranger.Halfway", "strategy.args.step=2.0"]
    with pytest.raises(RunError) as caught:
        simulate(configured(cache, *stranger), tmp_path)
    line = "round 1: Halfway.aggregate_train raised ArithmeticError: a step of 2 leads nowhere"
    assert str(caught.value) == f"{line} (tests/given/stranger.py:29)"
    log = (tmp_path / "run.log").read_text()
    assert line in log
    assert "Traceback" in log  # where one wants to know more


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=fedadam", "strategy.args.eta=0.02"],
        ["strategy=fedprox", "strategy.args.proximal_mu=0.5", "wsa=on", "wsa.align=after"],
        [
            "strategy._target_=flwr.serverapp.strategy.QFedAvg",
            "strategy.args.client_learning_rate=0.03",
        ],
        ["strategy._target_=tests.given.stranger.Halfway", "strategy.args.step=0.5"],
    ],
    ids=["fedadam", "fedprox+wsa", "qfedavg", "a stranger's"],
)
def test_other_strategies_run_and_the_model_keeps_its_dtype(
    overrides: list[str], cache: str, tmp_path: Path
) -> None:
    simulate(configured(cache, "rounds=2", *overrides), tmp_path)
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}
    table = pd.read_csv(tmp_path / "history.csv")
    assert len(table) == 2
    # clients.fraction=0.5 of six holds for each, whatever its constructor takes.
    assert [len(c.split()) for c in table["cohort"]] == [3, 3]
