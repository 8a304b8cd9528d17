"""Runs with attackers: who they are, what a defence makes of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.commands.simulate import simulate
from fedwsa.algorithms.attacks.attack import Known, ModelAttack
from fedwsa.config.component import ConfigError
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from server.rounds import RunError
from tests.given.run_folders import weights


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def configured(cache: str, *words: str) -> Config:
    fleet = ["clients.count=10", "partition=iid", "rounds=4", "runtime.workers=1"]
    return compose([*fleet, f"cache_dir={cache}", *words])


def test_liars_that_shout_bring_the_mean_to_chance_and_the_median_not(cache, tmp_path) -> None:
    shout = ["attack=sign_flip", "attack.scale=10", "attack.share=0.3"]
    mean = simulate(configured(cache, *shout), tmp_path / "mean")
    median = simulate(configured(cache, *shout, "strategy=rfa"), tmp_path / "median")
    assert mean["accuracy"] < 0.3
    assert median["accuracy"] > 0.85
    assert mean["attackers"] == median["attackers"]
    assert len(mean["attackers"]) == 3


@pytest.mark.parametrize(
    "words", [["attack=label_flip"], ["attack=alie", "attack.z=1.5", "wsa=on"]]
)
def test_they_attack_alike_alone_and_in_stacks(words: list[str], cache, tmp_path) -> None:
    """And FedWSA believes the scopes that come with forged weights: they are those of these."""
    for size in (1, 5):
        result = simulate(
            configured(cache, *words, "rounds=2", f"runtime.cohort={size}"), tmp_path / str(size)
        )
        assert result["rejected"] == 0
    alone, stacked = (weights(tmp_path / str(size)) for size in (1, 5))
    honest = simulate(configured(cache, *words[2:], "rounds=2"), tmp_path / "honest")
    assert "attackers" not in honest
    for name, tensor in alone.items():
        torch.testing.assert_close(stacked[name], tensor, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(weights(tmp_path / "honest")[name], tensor, rtol=1e-3, atol=1e-5)


def test_an_attack_that_sends_what_is_honest_changes_nothing(cache, tmp_path) -> None:
    """The forging itself adds rounding alone."""
    words = ["attack=scaled", "attack.scale=1.0", "rounds=2"]
    simulate(configured(cache, *words), tmp_path / "forged")
    simulate(configured(cache, "rounds=2"), tmp_path / "honest")
    for name, tensor in weights(tmp_path / "honest").items():
        torch.testing.assert_close(weights(tmp_path / "forged")[name], tensor, rtol=1e-5, atol=1e-6)
    history = [pd.read_csv(tmp_path / run / "history.csv") for run in ("forged", "honest")]
    assert history[0]["bytes_up"].tolist() == history[1]["bytes_up"].tolist()


def test_a_backdoor_opens_without_harm_to_what_is_measured_elsewhere(cache, tmp_path) -> None:
    words = ["rounds=8", "attack.share=0.3"]
    backdoor = [*words, "attack=backdoor", "attack.target=3"]
    result = simulate(configured(cache, *backdoor), tmp_path / "open")
    assert result["attack_success"] > 0.8
    assert result["accuracy"] > 0.9
    history = pd.read_csv(tmp_path / "open" / "history.csv")
    assert history["attack_success"].iloc[-1] == result["attack_success"]
    flipped = simulate(configured(cache, *words, "attack=label_flip"), tmp_path / "flip")
    assert "attack_success" not in flipped
    assert "attack_success" not in pd.read_csv(tmp_path / "flip" / "history.csv")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attack=backdoor", "attack.size=8"], "attack.size: a square of 8 pixels leaves nothing"),
        (["attack=backdoor", "attack.target=10"], "attack.target: the classes are 0 to 9"),
        (["attack=backdoor", "attack.part=0"], "attack.part"),
        (["attack.share=0.01"], "attack.share: 0.01 of 10 clients is nobody"),
        (["attack.share=0.96"], "attack.share: 0.96 of 10 clients is everybody"),
        (["strategy=krum"], "2 of the 10 clients of a round attack, and Krum is told to bear 0"),
        (["strategy=fedmedian", "attack.share=0.5"], "5 of the 10 .* FedMedian is told to bear 4"),
        (["strategy=rfa", "attack.share=0.5"], "GeometricMedian is told to bear 4"),
        (
            ["strategy=fedtrimmedavg", "strategy.args.beta=0.1"],
            "FedTrimmedAvg is told to bear 1",
        ),
        (
            ["strategy=dnc", "strategy.args.num_malicious_nodes=2", "strategy.args.iterations=5"],
            "removes up to 10 of the 10 clients",
        ),
        (["strategy=centralised"], "attack: .* has no clients that could attack"),
        (["attack.scale=-1"], "attack.scale"),
        (
            ["strategy=heterofl", "clients.sizes={S: 0.5, L: 0.5}"],
            "attack: updates of clients of one size",
        ),
    ],
)
def test_what_a_defence_cannot_bear_is_refused_in_one_line(
    words: list[str], message: str, cache, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(configured(cache, "attack=sign_flip", *words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Odd(ModelAttack):
    def forge(self, known: Known) -> Any:
        return None


def test_an_attack_of_one_s_own_that_forges_nothing_ends_in_one_line(cache, tmp_path) -> None:
    words = [f"attack._target_={__name__}.Odd", "attack.share=0.2"]
    message = r"^round 1: attack: Odd.forge\(\) must return a Tensor, not NoneType$"
    with pytest.raises(RunError, match=message):
        simulate(configured(cache, *words), tmp_path / "run")


def test_natural_clients_are_counted_before_attackers_are(tmp_path) -> None:
    pixels = np.zeros((60, 8, 8), dtype=np.uint8)
    data = {"x": pixels, "y": np.arange(60) % 3, "ids": np.arange(60) % 6}
    np.savez(tmp_path / "d.npz", **data)
    words = ["dataset=numpy", f"dataset.path={tmp_path}/d.npz", "partition=natural"]
    words += ["clients.count=null", "partition.min_samples=1", "attack=ipm", "attack.share=0.34"]
    assert len(compose(words).attackers) == 2
