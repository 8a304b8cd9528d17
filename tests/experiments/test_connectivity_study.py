"""The study of mode connectivity: what its pairs share, and what its lines begin and end with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.connectivity.cli import run
from experiments.connectivity.lines import TREATMENTS, divergence, ends
from experiments.connectivity.pairs import Pair, Trainer
from experiments.connectivity.schema import ConnectivityConfig, compose
from experiments.connectivity.summary import COLUMNS, barriers
from fedwsa.config.component import ConfigError
from fedwsa.data.sources import digits
from fedwsa.models.architecture import units_of
from fedwsa.scope.weight_scope import WeightScope

BRIEF = ["seeds=[0]", "local.epochs=1", "model.width=0.1", "subset.train=300", "subset.test=100"]
LESS = [f"~conditions.{name}" for name in ("weight_decay", "batch_size", "optimiser", "labels")]


def trainer(*changes: str) -> Trainer:
    return Trainer(compose([*BRIEF, *changes]), digits().decode(), "cpu")


def same(one: object, other: object) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)  # type: ignore[index,attr-defined]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two conditions."""
    found = tmp_path_factory.mktemp("connectivity")
    run(configured(found))
    return found


def configured(folder: Path, *changes: str) -> ConnectivityConfig:
    return compose(
        [*BRIEF, *LESS, f"folder={folder}", f"cache_dir={folder.parent / 'cache'}", *changes]
    )


def test_every_line_of_every_pair_has_eleven_points(folder: Path) -> None:
    points = pd.read_csv(folder / "points.csv")
    assert list(points.columns) == COLUMNS
    lines = points.groupby(["seed", "init", "condition", "wsa", "treatment"])["alpha"]
    assert len(lines) == 1 * 2 * 3 * 2 * len(TREATMENTS)
    assert all(np.allclose(own, np.linspace(0, 1, 11)) for _, own in lines)


def test_permutations_change_neither_end(folder: Path) -> None:
    points = pd.read_csv(folder / "points.csv")
    at_ends = points[points["alpha"].isin([0.0, 1.0])]
    wide = at_ends.pivot(
        index=["init", "condition", "wsa", "alpha"], columns="treatment", values="loss"
    )
    np.testing.assert_allclose(wide["plain"], wide["permutation"], rtol=1e-5)


def test_lines_begin_with_the_same_network_under_all_conditions_that_differ_in_b(
    folder: Path,
) -> None:
    points = pd.read_csv(folder / "points.csv").query("alpha == 0 and treatment == 'plain'")
    begin = points.query("wsa == 'off' and condition in ['seed', 'lr']")["loss"]
    assert len(begin) == 4
    assert begin.nunique() == 1


def test_finished_pairs_stay_and_only_new_ones_are_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(folder, tmp_path / "connectivity")
    before = pd.read_csv(folder / "points.csv")
    trained = []
    train = Trainer.states
    monkeypatch.setattr(Trainer, "states", lambda self, p: trained.append(p) or train(self, p))
    run(configured(folder))
    assert trained == []
    run(configured(folder, "+conditions.new={lr: 0.1}", "starts=[same]"))
    assert trained == [Pair(0, "same", "new", wsa) for wsa in (False, True)]
    after = pd.read_csv(folder / "points.csv")
    pd.testing.assert_frame_equal(after[: len(before)], before)


@pytest.mark.parametrize("change", ["local.lr=0.1", "conditions.lr.lr=0.02", "alpha=1.0"])
def test_results_of_other_settings_are_not_mixed(folder: Path, change: str) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        run(configured(folder, change))


def test_the_table_and_the_pictures_are_written(folder: Path) -> None:
    text = (folder / "summary.md").read_text(encoding="utf-8")
    assert text.count("| WSA − none |") == 2 * 3 * 3  # beginnings, tables, conditions
    for picture in ("barriers.png", "lines.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_barriers_are_read_off_the_points() -> None:
    """Loss 2α + α(1−α) rises by 1/4 above the line between its ends; accuracy is straight."""
    alphas = np.linspace(0, 1, 11)
    facts = {"seed": 0, "init": "same", "condition": "lr", "wsa": "off", "treatment": "plain"}
    points = pd.DataFrame(
        [
            {**facts, "scope_kl": 3.0, "alpha": a, "loss": 2 * a + a * (1 - a), "accuracy": 1 - a}
            for a in alphas
        ]
    )
    [found] = barriers(points).to_dict("records")
    assert found["loss"] == pytest.approx(0.25)
    assert found["accuracy"] == pytest.approx(0.0, abs=1e-9)
    assert (found["ends"], found["middle"]) == (pytest.approx(50.0), pytest.approx(50.0))


def test_pairs_start_from_the_same_weights_or_from_others() -> None:
    found = trainer()
    start = found.network(0).state_dict()
    assert same(start, found.network(0, "same", 1).state_dict())
    assert same(start, found.network(0, "apart", 0).state_dict())
    assert not same(start, found.network(0, "apart", 1).state_dict())


def test_a_strength_of_zero_is_training_without_wsa_to_the_bit() -> None:
    found = trainer("wsa.strength=0.0")
    off, on = (found.states(Pair(0, "apart", "lr", wsa)) for wsa in (False, True))
    assert all(same(one, other) for one, other in zip(off, on, strict=True))


def test_wsa_brings_scopes_nearer_to_the_common_target() -> None:
    found = trainer("wsa.strength=30.0", "local.epochs=5", "conditions.lr.lr=0.003")
    apart = [divergence(*found.states(Pair(0, "same", "lr", on)), 1e-4) for on in (False, True)]
    assert apart[1] < apart[0] / 10


def test_the_seed_and_the_side_draw_the_batches() -> None:
    """Nothing else differs in the condition ``seed``; B with A's draws would be A."""
    found = trainer()
    a, b = found.states(Pair(0, "same", "seed", False))
    again = trainer().states(Pair(0, "same", "seed", False))
    assert not same(a, b)
    assert same(a, again[0])
    assert same(b, again[1])


def test_halves_of_the_labels_and_dirichlet_halves_share_the_data_out() -> None:
    found = trainer()
    conditions = found.config.conditions
    a, b = found._share(conditions["labels"], 0)
    assert (set(a.labels.tolist()), set(b.labels.tolist())) == (set(range(5)), set(range(5, 10)))
    for name in ("labels", "dirichlet"):
        assert sum(map(len, found._share(conditions[name], 0))) == len(found.data.train)


def test_rescaled_ends_have_one_scope() -> None:
    found = trainer()
    a, b = found.states(Pair(0, "apart", "optimiser", False))
    known = units_of(found.config.model, found.data.shape, found.data.classes)
    for treatment in ("rescale", "permutation_rescale"):
        scopes = [WeightScope.measure(s) for s in ends(a, b, treatment, known, 0)]
        torch.testing.assert_close(scopes[0].mean, scopes[1].mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(scopes[0].variance, scopes[1].variance, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("points=10", "points: input should be greater than or equal to 11"),
        ("starts=[]", "starts: "),
        ("local=differing", "local=equal is wanted here"),
        ("conditions.lr.speed=3", "conditions.lr.speed"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(change: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([f"+{change}" if "speed" in change else change])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_without_known_units_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="does not say which units may change places"):
        run(configured(tmp_path / "none", "model=vit"))
    assert not (tmp_path / "none").exists()
