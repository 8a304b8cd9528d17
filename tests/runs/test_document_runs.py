"""Runs on texts with a label each: made sentences whose mood is in two of their words."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from experiments.commands.simulate import simulate
from fedwsa.schema.compose import compose

MOODS = {"sad": ["bad", "poor", "dull", "awful"], "happy": ["good", "fine", "lovely", "superb"]}
OTHERS = [f"word{i}" for i in range(60)]
SETTINGS = (
    "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, "
    "attention_probs_dropout_prob: 0.0}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("documents"), np.random.default_rng(0)
    (folder / "moods").mkdir()
    for part, count in (("train", 400), ("test", 100)):
        with (folder / "moods" / f"{part}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "mood"])
            for i in range(count):
                mood = list(MOODS)[i % 2]
                words = [*random.choice(OTHERS, 6), *random.choice(MOODS[mood], 2)]
                rows.writerow([" ".join(random.permutation(words)), mood])
    return folder


@pytest.mark.slow
def test_clients_in_a_stack_learn_what_each_learns_alone(place: Path) -> None:
    words = [
        *("dataset=hub", f"dataset.name={place / 'moods'}", "dataset.label_column=mood"),
        *("dataset.sequence=10", f"cache_dir={place / 'cache'}", "partition=iid"),
        *("model=transformers", "model.name=bert", f"model.settings={SETTINGS}", "rounds=5"),
        *("clients.count=4", "local.optimiser=adamw", "local.lr=0.01", "runtime.workers=1"),
        *("local.epochs=5", "local.batch_size=16"),
    ]
    accuracies = [
        simulate(compose([*words, f"runtime.cohort={size}"]), place / str(size))["accuracy"]
        for size in (1, 4)
    ]
    assert min(accuracies) > 0.9
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)
