"""Clients that never train, and what clients make of the model at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from experiments.commands.simulate import simulate
from fedwsa.config.component import ConfigError
from fedwsa.data.evaluation import evaluate
from fedwsa.data.federated import open_federated
from fedwsa.models import build_model
from fedwsa.schema.compose import compose

SMALL = [
    "clients.count=10",
    "rounds=3",
    "local.epochs=1",
    "model.width=0.2",
    "clients.fraction=0.5",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def test_unseen_clients_never_train_and_are_scored_with_the_last_model(
    cache: str, tmp_path: Path
) -> None:
    config = compose([*SMALL, f"cache_dir={cache}", "clients.unseen=0.3", "guard.min_results=3"])
    result = simulate(config, tmp_path / "run")
    assert len(config.unseen) == 3
    history = pd.read_csv(tmp_path / "run" / "history.csv", dtype={"cohort": str})
    trained = {int(client) for cohort in history["cohort"] for client in cohort.split()}
    assert not trained & config.unseen
    assert {len(cohort.split()) for cohort in history["cohort"]} == {3}  # half of seven
    scored = pd.read_csv(tmp_path / "run" / "client_scores.csv")["client"]
    assert not set(scored) & config.unseen

    data = open_federated(config.data_spec)
    model = build_model(config.model, data.whole.shape, data.whole.classes, config.seed)
    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    found = [
        evaluate(model, data.whole.train[data.split(k)[1]], data.whole, "cpu", 64).accuracy
        for k in config.unseen
    ]
    assert result["unseen_accuracy_mean"] == pytest.approx(sum(found) / 3)
    assert result["unseen_accuracy_worst10"] == pytest.approx(min(found))
    assert "adapted_accuracy_mean" not in result


def test_the_last_model_is_also_scored_after_clients_have_adapted_it(
    cache: str, tmp_path: Path
) -> None:
    """At a rate of nothing it stays what it was; what clients keep is none of it."""
    words = [*SMALL, f"cache_dir={cache}", "clients.unseen=0.2", "strategy=fedper"]
    still = compose([*words, "evaluation.adapt=1", "local.lr=1e-9"])
    result = simulate(still, tmp_path / "still")
    for of in ("adapted_{}", "unseen_adapted_{}"):
        for what in ("accuracy_mean", "accuracy_worst10"):
            before = of.replace("adapted_", "").format(what)
            plain = result.get(before, result.get(f"client_{what}"))
            assert result[of.format(what)] == plain
    adapted = simulate(compose([*words, "evaluation.adapt=20"]), tmp_path / "adapted")
    assert adapted["adapted_accuracy_mean"] > adapted["client_accuracy_mean"]
    assert adapted["unseen_adapted_accuracy_mean"] > adapted["unseen_accuracy_mean"]
    plain = simulate(compose(words), tmp_path / "plain")
    assert plain["client_accuracy_mean"] == adapted["client_accuracy_mean"]
    written = json.loads((tmp_path / "adapted" / "result.json").read_text())
    assert written["unseen_adapted_accuracy_worst10"] <= written["unseen_adapted_accuracy_mean"]


@pytest.mark.parametrize("pace", ["synchronous", "fedasync"])
def test_where_only_unseen_clients_are_there_another_is_asked(
    pace: str, cache: str, tmp_path: Path
) -> None:
    """Flower would wait for ever for a client."""
    words = ["clients.unseen=0.9", "clients.availability=0.01", "clients.fraction=1.0"]
    config = compose([*SMALL, f"cache_dir={cache}", *words, f"pace={pace}"])
    result = simulate(config, tmp_path / "run")
    assert result["rounds"] == 3
    history = pd.read_csv(tmp_path / "run" / "history.csv", dtype={"cohort": str})
    [learning] = {*range(10)} - config.unseen
    assert set(history["cohort"]) == {str(learning)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("clients.unseen=0.97", r"clients\.unseen: 0\.97 of 10 clients is everybody"),
        ("clients.unseen=0.02", r"clients\.unseen: 0\.02 of 10 clients is nobody"),
        ("clients.unseen=0.5 guard.min_results=6", r"more than the 2 clients of a round"),
        ("clients.unseen=0.2 strategy=dp_server_fixed", r"clients\.unseen: clients keep their"),
        ("evaluation.adapt=2 strategy=dp_server_fixed", r"evaluation\.adapt: clients keep their"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: str, message: str, cache: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(compose([*SMALL, f"cache_dir={cache}", *words.split()]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
