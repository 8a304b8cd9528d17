"""A search by Optuna: what it draws from, what it is told, what it ends early, what it keeps."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from experiments.commands import search, simulate
from fedwsa.data.evaluation import Score
from server.callbacks.choosing import Pruned
from tests.given.commands import Called, called, fedwsa

SEARCH = ["--multirun", "hydra/sweeper=optuna"]
VALID = "evaluation.validation=0.1"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("local.lr=interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("local.lr=tag(log,interval(0.001,1))", FloatDistribution(0.001, 1.0, log=True)),
        ("local.epochs=int(interval(1,4))", IntDistribution(1, 4)),
        ("local.epochs=range(1,9,3)", IntDistribution(1, 7, step=3)),
        ("wsa=off,on", CategoricalDistribution(["off", "on"])),
        ("local.lr=0.1,0.01", CategoricalDistribution(["0.1", "0.01"])),
        ("local.lr=range(0.5,1.5,0.5)", CategoricalDistribution(["0.5", "1.0"])),
    ],
)
def test_what_a_key_s_values_are_drawn_from(word: str, expected: object) -> None:
    [override] = OverridesParser.create().parse_overrides([word])
    assert search.distribution(override) == expected


def test_a_run_is_given_up_when_the_search_says_so_after_its_evaluations() -> None:
    told: list[tuple[int, float]] = []

    def report(evaluations: int, accuracy: float) -> bool:
        told.append((evaluations, accuracy))
        return evaluations == 2

    judge = Pruned(report)
    scores = [None, Score(0.5, 1.0, 9), None, Score(0.4, 1.0, 9)]
    assert [judge.is_over(score) for score in scores] == [False, False, False, True]
    assert told == [(1, 0.5), (2, 0.4)]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    return called("fedwsa", simulate.main, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([VALID], "hydra/sweeper=optuna: there is nothing to search; give a key a range or choic"),
        (["wsa=off,on"], "hydra/sweeper=optuna: a search chooses on images that are neither clie"),
        (["wsa=off,on", VALID, "hydra.sweeper.trials=0"], "hydra.sweeper.trials: input should be"),
        (["wsa=off,on", VALID, "hydra.sweeper.sampler=tpee"], "hydra.sweeper.sampler: input shou"),
        (["wsa=off,on", VALID, "hydra.sweeper.trails=3"], "hydra.sweeper.trails: unknown key; fe"),
        (
            ["local.lr=interval(0.1,1)", VALID, "hydra.sweeper.sampler=grid"],
            "hydra.sweeper.sampler=grid: local.lr has a range without steps",
        ),
        (["local.lr=tag(log,interval(0,1))", VALID], "local.lr: `low > 0` must hold for `log=True"),
        (["modle=mlp,cnn", VALID], "modle: unknown key; did you mean model?"),
        (["wsa=off,on,foo", VALID], "wsa=foo: no such option"),
        (["local.epochs=range(5,1)", VALID], "local.epochs: there is nothing in the range"),
        (["wsa=off,on", VALID, f"hydra.sweeper.storage={__file__}"], "hydra.sweeper.storage: /"),
    ],
)
def test_a_search_that_cannot_be_is_one_line_and_leaves_nothing(
    words: list[str], line: str, command: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = command(*SEARCH, *words)
    assert code == 1
    assert said.startswith(f"fedwsa: {line}")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_it_says_what_to_install(
    command: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "find_spec", lambda name: None if name == "optuna" else True)
    code, _, said = command(*SEARCH, "wsa=off,on", VALID)
    assert (code, said) == (
        1,
        "fedwsa: hydra/sweeper=optuna: needs pip install 'fedwsa[optuna]'\n",
    )


FLEET = ["rounds=3", "clients.count=3", "local.epochs=1", "runtime.workers=1", "model.width=0.2"]


@pytest.mark.slow
def test_each_trial_is_a_run_that_answers_by_the_validation_split(tmp_path: Path) -> None:
    """Twelve rates from far too small to good: some are given up, the best is the best."""
    words = ["local.lr=tag(log,interval(0.00001,0.3))", "hydra.sweeper.pruning_after=2"]
    keep = [f"hydra.sweeper.storage={tmp_path}/search.log", VALID, *FLEET, "hydra.sweep.dir=sweep"]
    for trials in (7, 10):  # it goes on where it was
        done = fedwsa(tmp_path, *SEARCH, f"hydra.sweeper.trials={trials}", *words, *keep)
        assert done.returncode == 0, done.stderr
        table = pd.read_csv(tmp_path / "sweep" / "search.csv")
        assert table["trial"].tolist() == list(range(trials))
    assert table["local.lr"].is_unique  # it does not draw again what it drew
    other = fedwsa(tmp_path, *SEARCH, "wsa=off,on", *keep, "hydra.sweep.dir=other")
    assert other.returncode == 1
    assert (
        "search.log holds another search: local.lr=tag(log,interval(0.00001,0.3)), wsa=off,on"
        in (other.stderr)
    )
    assert "trial 8 of 10" in done.stdout
    assert "trial 7 of" not in done.stdout
    curves: list[list[float]] = []
    for row in table.itertuples():
        run = tmp_path / "sweep" / str(row.trial)
        assert OmegaConf.load(run / "config.yaml").local.lr == table["local.lr"][row.trial]
        curve = pd.read_csv(run / "history.csv")["validation_accuracy"].tolist()
        assert row.evaluations == len(curve)
        others = [
            c for c, state in zip(curves, table["state"], strict=False) if state == "complete"
        ]
        if row.state == "pruned":
            step = len(curve) - 1
            assert max(curve) < statistics.median(max(c[: step + 1]) for c in others)
            assert json.loads((run / "result.json").read_text())["rounds"] == len(curve)
        else:
            assert row.state == "complete"
            assert row.validation_accuracy == curve[-1]
            assert len(curve) == 3
        curves.append(curve)
    assert "pruned" in set(table["state"])
    best = table[table["state"] == "complete"]["validation_accuracy"].idxmax()
    assert (
        f"the best is {best}, with a validation accuracy of {curves[best][-1]:.4f}:\n  local.lr="
        in (done.stdout)
    )


@pytest.mark.slow
def test_a_grid_is_all_of_it_and_a_trial_that_fails_is_named(tmp_path: Path) -> None:
    words = ["local.lr=0.1,-1", "wsa=off,on", "hydra.sweeper.sampler=grid", "hydra.sweep.dir=sweep"]
    done = fedwsa(tmp_path, *SEARCH, *words, VALID, *FLEET, "rounds=1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "fedwsa: 2 of the 4 runs failed: 2, 3"
    table = pd.read_csv(tmp_path / "sweep" / "search.csv")
    assert table["state"].tolist() == ["complete", "complete", "fail", "fail"]
    assert table["wsa"].tolist() == ["off", "on"] * 2
