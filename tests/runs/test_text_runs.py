"""Whole runs on text: a tiny play, a client for each role, both networks, with and without WSA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.commands.simulate import simulate
from fedwsa.config.component import ConfigError
from fedwsa.data.text import encode
from fedwsa.models.files import load_network
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from tests.given.run_folders import weights

ROLES = ("Ann", "Bob", "Eve", "Lear")
LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a play, in which each letter is followed by the next one, now and then not."""
    folder = tmp_path_factory.mktemp("text")
    random, speeches = np.random.default_rng(0), []
    for i in range(24):
        steps = np.where(random.random(160) < 0.9, 1, 3).cumsum() % len(LETTERS)
        speeches.append(f"{ROLES[i % 4]}:\n{''.join(LETTERS[s] for s in steps)}\n")
    (folder / "play.txt").write_text("\n".join(speeches))
    return folder


def configured(place: Path, *overrides: str) -> Config:
    return compose(
        [
            "dataset=shakespeare",
            f"dataset.path={place / 'play.txt'}",
            "dataset.sequence=20",
            f"cache_dir={place / 'cache'}",
            "partition=natural",
            "partition.min_samples=1",
            "model=char_lstm",
            "model.width=0.25",
            "rounds=2",
            "clients.count=4",
            "local.batch_size=8",
            "local.lr=1.0",
            "local.momentum=0.0",
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def aligned(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned")
    simulate(configured(place, "wsa=on", "wsa.strength=1"), folder / "run")
    return folder / "run"


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_wsa_aligns_embeddings_and_recurrent_layers(aligned: Path) -> None:
    table = pd.read_csv(aligned / "scopes.csv")
    recurrent = ["layers.0.weight_ih_l0", "layers.0.weight_hh_l0"]
    assert table["layer"].tolist() == 2 * ["embedding.weight", *recurrent, "head.weight"]
    assert (table["client_kl"] > 0).all()
    # By moments the fused variance is at least that of the averaged weights.
    assert (table["fused_std"] >= table["averaged_std"]).all()


def test_the_model_learns_more_than_the_most_frequent_character(aligned: Path) -> None:
    # Nine of ten letters are followed by the next one: 1/9 is the most frequent's share, or less.
    history = pd.read_csv(aligned / "history.csv")
    assert history["accuracy"].iloc[-1] > 0.5
    assert history["client_accuracy_mean"].iloc[-1] > 0.5
    assert history["failed"].isna().all()


def test_every_role_is_a_client(aligned: Path) -> None:
    partition = json.loads((aligned / "partition.json").read_text())
    counts = np.array(partition["label_counts"])
    assert counts.shape == (4, 4)
    assert (counts > 0).tolist() == np.eye(4, dtype=bool).tolist()


def test_strength_zero_is_fedavg_to_the_bit(aligned: Path, place: Path, tmp_path: Path) -> None:
    simulate(configured(place), tmp_path / "off")
    simulate(configured(place, "wsa=on", "wsa.strength=0"), tmp_path / "zero")
    assert same(tmp_path / "off", tmp_path / "zero")
    off, zero = (pd.read_csv(tmp_path / f / "history.csv") for f in ("off", "zero"))
    traffic = ["bytes_down", "bytes_up", "simulated_seconds"]  # scopes travel too
    pd.testing.assert_frame_equal(off.drop(columns=traffic), zero.drop(columns=traffic))
    assert not same(tmp_path / "off", aligned)


def test_a_saved_model_can_be_used_with_the_vocabulary_beside_it(aligned: Path) -> None:
    saved = load_network(aligned / "model.safetensors")
    assert (saved.shape, saved.data["kind"]) == ((20,), "text")
    vocabulary = saved.data["vocabulary"]
    assert set(LETTERS) < set(vocabulary)
    assert saved.classes == len(vocabulary)
    text = encode("abcdefghabc", vocabulary)[None].long()
    answer = saved.module.eval()(text)[0, :, -1].argmax()
    assert vocabulary[answer] == "d"


def test_a_transformer_is_trained_in_cohorts_with_wsa_as_one_by_one(
    place: Path, tmp_path: Path
) -> None:
    common = ["model=char_transformer", "local.lr=0.1", "wsa=on", "wsa.strength=1"]
    for cohort in ("off", "2"):
        simulate(configured(place, *common, f"runtime.cohort={cohort}"), tmp_path / cohort)
    alone, together = weights(tmp_path / "off"), weights(tmp_path / "2")
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4)
    layers = pd.read_csv(tmp_path / "2" / "scopes.csv")["layer"].unique()
    expected = {name for name, tensor in alone.items() if tensor.dim() >= 2}
    assert (
        {"embedding.weight", "positions.weight", "blocks.1.attn.qkv.weight"}
        < expected
        == set(layers)
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=cnn"], "model: cnn is for images, and the data are text; take one of char_lstm, "),
        (["dataset.augment=crop_flip"], r"dataset.augment=crop_flip: not for text, which takes "),
        (["runtime.cohort=2"], r"runtime.cohort=2: .* at once: torch has no stacked LSTM"),
        (["strategy=wave"], "no weight that templates could make"),
    ],
)
def test_what_does_not_fit_text_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(configured(place, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_text_without_roles_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "prose.txt").write_text("Nobody speaks here.\n" * 100)
    with pytest.raises(ConfigError, match=r"dataset.path: .*prose.txt has no roles") as caught:
        simulate(configured(place, f"dataset.path={tmp_path / 'prose.txt'}"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "strategy", "small", "large"),
    [
        ("char_lstm", "heterofl", "{width: 0.25, depth: 1}", "{width: 0.5, depth: 1}"),
        ("char_lstm", "depthfl", "{width: 0.25, depth: 1}", "{width: 0.25, depth: 2}"),
        ("char_transformer", "wave", "{width: 0.25, depth: 1}", "{width: 0.5, depth: 2}"),
    ],
)
def test_sizes_of_networks_for_text_share_a_federation(
    place: Path, tmp_path: Path, model: str, strategy: str, small: str, large: str
) -> None:
    sizes = ["clients.sizes=[S, L, S, L]", f"sizes={{S: {small}, L: {large}}}"]
    chosen = [f"model={model}", f"strategy={strategy}", "wsa=on", "wsa.strength=1", "local.lr=0.1"]
    result = simulate(configured(place, *chosen, *sizes), tmp_path)
    assert result["failed"] == 0
    assert all(0 < accuracy < 1 for accuracy in result["sizes"].values())
