"""However a run is played, it gives one model: ``make grid``, about an hour.

In double precision (:mod:`tests.given.double`), where the order of a sum decides nothing.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import ray
import torch
from safetensors.torch import load_file

from experiments.commands.simulate import simulate
from tests.given.grid import STRATEGIES, composed, every_cell, refusal

pytestmark = [pytest.mark.grid, pytest.mark.usefixtures("all_cores")]

# Rates at which no cell diverges, and no batch of two: both multiply rounding.
FLEET = ["rounds=3", "clients.count=8", "local.lr=0.02", "evaluation.clients_every=1"]
CONDITIONS = {
    "alike": ["local.batch_size=5"],
    "differing": [
        *("local.batch_sizes=[5,9]", "local.epoch_factors=[1,2]", "local.lr_factors=[0.5,1]"),
        "local.weight_decays=[0,0.01]",
    ],
}
ALONE = ["runtime.cohort=off"]
WAYS = {
    "by 2": ["runtime.cohort=2"],
    "by 7": ["runtime.cohort=7"],
    "all at once": ["runtime.cohort=8"],
    "two workers": ["runtime.cohort=off", "runtime.workers=2"],
    "two workers, by 2": ["runtime.cohort=2", "runtime.workers=2"],
}

Left = tuple[dict[str, torch.Tensor], pd.DataFrame]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def left_by(folder: Path) -> Left:
    """The models of a run, and the losses of its rounds."""
    tensors = {
        f"{file.name}: {name}": tensor
        for file in sorted(folder.glob("model*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    losses = pd.read_csv(folder / "history.csv").filter(like="loss")
    # Clients with models of their own leave none behind: their losses are what there is to compare.
    assert tensors or losses.notna().any(axis=None)
    return tensors, losses


def assert_alike(one: Left, other: Left, way: str) -> None:
    assert one[0].keys() == other[0].keys(), way
    for name, tensor in one[0].items():
        told = lambda said, name=name: f"{way}: {name}: {said}"  # noqa: E731
        torch.testing.assert_close(other[0][name], tensor, rtol=1e-6, atol=1e-9, msg=told)
    pd.testing.assert_frame_equal(one[1], other[1], rtol=1e-4)


@pytest.mark.parametrize("conditions", CONDITIONS)
@every_cell(["mlp", "cnn", "cnn_pfl", "resnet20", "vit"])
def test_alone_stacked_and_on_two_workers_a_run_gives_one_model(
    strategy: str, wsa: str, model: str, conditions: str, cache: str, tmp_path: Path
) -> None:
    if refusal(strategy, model, wsa):
        pytest.skip("refused, as the grid says")

    def played(name: str, *words: str) -> Left:
        builder = {"resnet20": "resnet"}.get(model, model)
        more = [*FLEET, *CONDITIONS[conditions], *words]
        more.append(f"model._target_=tests.given.double.{builder}")
        config = composed(strategy, wsa, model, cache, *more)
        assert simulate(config, tmp_path / name)["failed"] == 0
        return left_by(tmp_path / name)

    alone, again = played("alone", *ALONE), played("again", *ALONE)
    assert all(torch.equal(again[0][name], tensor) for name, tensor in alone[0].items())
    pd.testing.assert_frame_equal(alone[1], again[1], check_exact=True)
    for way, words in WAYS.items():
        assert_alike(alone, played(way, *words), way)


@pytest.mark.parametrize("wsa", ["off", "on"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_flower_s_simulation_gives_it_too(
    strategy: str, wsa: str, cache: str, tmp_path: Path
) -> None:
    """On the model that has everything; a start of Ray for each."""
    if refusal(strategy, "all", wsa):
        pytest.skip("refused, as the grid says")
    ray.shutdown()  # it would wait for the cores of kept workers
    more = [*FLEET, *CONDITIONS["differing"]]
    for name, words in (("flower", ["runtime=flower"]), ("alone", ALONE)):
        config = composed(strategy, wsa, "all", cache, *more, *words)
        assert simulate(config, tmp_path / name)["failed"] == 0
    assert_alike(left_by(tmp_path / "alone"), left_by(tmp_path / "flower"), "flower")
