"""Stopping early and keeping the best model: by the validation split, never by the test set."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from flwr.app import ArrayRecord
from safetensors.torch import load_file

from experiments.commands.simulate import resume, simulate
from fedwsa.config.component import ConfigError
from fedwsa.data.evaluation import Score
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from server.callbacks.choosing import BestModel, EarlyStop
from server.record import RoundRecord
from tests.given.checkpoint import assert_same_run, interrupted

TINY = ["clients.count=4", "local.epochs=1", "model.width=0.2", "evaluation.validation=0.2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def run(folder: Path, cache: str, *overrides: str) -> tuple[Config, pd.DataFrame, dict]:
    config = compose([*TINY, "runtime.cohort=off", f"cache_dir={cache}", *overrides])
    result = simulate(config, folder)
    return config, pd.read_csv(folder / "history.csv"), result


def score(accuracy: float | None) -> Score | None:
    return None if accuracy is None else Score(accuracy, 1.0, 10)


def record(number: int, accuracy: float | None) -> RoundRecord:
    return RoundRecord(number, validation=score(accuracy), arrays=ArrayRecord())


def test_it_is_over_after_patience_evaluations_without_a_better_one() -> None:
    stop = EarlyStop(2)
    seen = [0.5, None, 0.6, 0.6, None, 0.55]  # rounds without an evaluation do not count
    over = [stop.is_over(score(accuracy)) for accuracy in seen]
    assert over == [False, False, False, False, False, True]


def test_what_was_seen_before_counts() -> None:
    assert EarlyStop(2, [0.6, 0.5]).is_over(score(0.6))
    assert not EarlyStop(2, [0.6, 0.5]).is_over(score(0.7))


def test_the_first_of_the_best_is_kept() -> None:
    saved: list[int] = []
    best = BestModel(lambda arrays, number: saved.append(number), [(1, 0.3)])
    for number, accuracy in [(2, 0.3), (3, 0.5), (4, None), (5, 0.4), (6, 0.5)]:
        best.on_round(record(number, accuracy))
    assert (saved, best.round, best.accuracy) == ([3], 3, 0.5)


def test_a_run_that_does_not_learn_ends_early_and_is_evaluated_in_full(
    cache: str, tmp_path: Path
) -> None:
    own = ("rounds=9", "local.lr=1e-12", "evaluation.patience=2", "evaluation.clients_every=9")
    _, history, result = run(tmp_path / "run", cache, *own)
    assert history["round"].tolist() == [1, 2, 3]
    assert result["rounds"] == 3
    assert result["client_accuracy_mean"] == history["client_accuracy_mean"].iloc[-1]
    assert history["client_accuracy_mean"].notna().tolist() == [False, False, True]


def test_the_best_model_is_that_of_a_run_that_ends_there(cache: str, tmp_path: Path) -> None:
    own = ("local.lr=1.5", "evaluation.keep_best=true")  # so high that it goes up and down
    _, history, result = run(tmp_path / "long", cache, "rounds=8", *own)
    best = int(history["validation_accuracy"].idxmax())  # the first of equals
    number = int(history["round"].iloc[best])
    assert number < 8, "choose another rate: the last round is the best"
    assert result["best_round"] == number
    assert result["best_validation_accuracy"] == history["validation_accuracy"].iloc[best]
    run(tmp_path / "short", cache, f"rounds={number}", *own)
    kept = load_file(tmp_path / "long" / "best.safetensors")
    there = load_file(tmp_path / "short" / "model.safetensors")
    assert all(torch.equal(kept[name], there[name]) for name in there)


def test_a_resumed_run_stops_where_it_would_have(cache: str, tmp_path: Path) -> None:
    own = ["evaluation.validation=0.2", "evaluation.patience=3", "evaluation.keep_best=true"]
    own += ["local.lr=1e-12", "rounds=9"]
    config = interrupted(tmp_path / "stopped", cache, 1, 2, *own)
    whole = config.model_copy(update={"checkpoint": compose().checkpoint})
    simulate(whole, tmp_path / "whole")
    resume(tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert json.loads((tmp_path / "stopped" / "result.json").read_text())["rounds"] == 4


@pytest.mark.parametrize("wish", ["evaluation.patience=2", "evaluation.keep_best=true"])
def test_without_a_split_or_a_global_model_there_is_nothing_to_choose_by(
    wish: str, cache: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"need evaluation\.validation, as 0\.1"):
        compose([wish])
    with pytest.raises(ConfigError, match="under LocalOnly there is no global model to validate"):
        run(tmp_path / "run", cache, wish, "strategy=local")
    assert not (tmp_path / "run").exists()
