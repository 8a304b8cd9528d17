"""Every strategy with and without WSA, on digits with an MLP and on colour images with a CNN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from experiments.commands.simulate import simulate
from fedwsa.algorithms.traits import traits_of
from fedwsa.config.component import ConfigError, locate
from fedwsa.runfolder import state_files
from fedwsa.schema.config import Config
from tests.given.grid import composed, every_cell, refusal

MODELS = ["mlp", "all", "cnn"]
ALONE = ("fedala", "ifca", "fjord", "depthfl", "scalefl")  # samples first, or networks within


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@every_cell(MODELS)
def test_two_rounds_of_every_combination_or_the_reason_why_not(
    strategy: str, wsa: str, model: str, cache: str, tmp_path: Path
) -> None:
    config = composed(strategy, wsa, model, cache)
    if reason := refusal(strategy, model, wsa):
        with pytest.raises(ConfigError, match=reason):
            simulate(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return
    result = simulate(config, tmp_path / "run")
    assert result["failed"] == 0
    assert remembered(tmp_path / "run") == says_that_clients_remember(config)
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["round"].tolist() == [1, 2]
    if config.private:  # what the noise does not cover is withheld
        assert history["train_loss"].isna().all()
        assert result["client_accuracy_mean"] is None
        assert (history["epsilon"].diff().dropna() > 0).all()
        return
    assert np.isfinite(history["train_loss"]).all()
    personal = strategy in ("fedbn", "fedper", "fedproto", "fedrep", "ifca", "local")
    assert (result["accuracy"] is None) == personal
    assert 0 <= result["client_accuracy_mean"] <= 1
    assert (tmp_path / "run" / "scopes.csv").exists() == (wsa == "on")


@pytest.mark.slow  # on the model that has everything; `make grid` has all of them
@every_cell(["all"])
def test_stacks_of_eight_give_the_models_that_clients_give_alone(
    strategy: str, wsa: str, model: str, cache: str, tmp_path: Path
) -> None:
    if refusal(strategy, model, wsa):
        pytest.skip("refused, as the grid says")
    if strategy in ALONE:
        config = composed(strategy, wsa, model, cache, "clients.count=8", "runtime.cohort=8")
        with pytest.raises(ConfigError, match=r"cannot be trained at once: .* looks at one model"):
            simulate(config, tmp_path / "run")
        return
    found, tables = [], []
    for cohort in ("off", "8"):
        more = ["clients.count=8", f"runtime.cohort={cohort}"]
        config = composed(strategy, wsa, model, cache, *more)
        assert simulate(config, tmp_path / cohort)["failed"] == 0
        models = sorted((tmp_path / cohort).glob("model*.safetensors"))
        found.append({file.name: load_file(file) for file in models})
        tables.append(pd.read_csv(tmp_path / cohort / "history.csv").filter(like="loss"))
    alone, stacked = found
    assert alone.keys() == stacked.keys()
    # Clients with models of their own leave none behind: their losses are what there is to compare.
    assert alone or tables[0].notna().any(axis=None)
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)
    for file, tensors in alone.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(stacked[file][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def remembered(folder: Path) -> bool:
    """Whether the clients of a run keep something, by its checkpoint."""
    [place, *_] = sorted((folder / "checkpoints").iterdir())
    return any(len(content) for content in state_files.read(place)["clients"].values())


def says_that_clients_remember(config: Config) -> bool:
    strategy = locate(config.strategy.component.target, "strategy")
    return traits_of(strategy).clients_remember
