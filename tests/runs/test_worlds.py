"""Every strategy in every world, with WSA and without: it runs, or one line says why not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from experiments.commands.simulate import simulate
from fedwsa.config.component import ConfigError
from fedwsa.config.places import CONFIG_DIR
from tests.given.grid import STRATEGIES, composed

pytestmark = pytest.mark.grid


def _options(group: str, usual: str) -> list[str]:
    return sorted({file.stem for file in (CONFIG_DIR / group).glob("*.yaml")} - {usual})


WORLDS = {
    **{
        f"attack={name}": [
            f"attack={name}",
            "attack.share=0.25",
            "clients.count=8",
            "init.public=0.1",
        ]
        for name in _options("attack", "none")
    },
    **{
        f"pace={name}": [f"pace={name}", "clients.speed_spread=1", "clients.count=6"]
        for name in _options("pace", "synchronous")
    },
    **{f"compress={name}": [f"compress={name}"] for name in _options("compress", "none")},
    **{f"sampler={name}": [f"sampler={name}"] for name in _options("sampler", "uniform")},
    "unseen": ["clients.unseen=0.34", "evaluation.adapt=1"],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("wsa", ["off", "on"])
@pytest.mark.parametrize("world", WORLDS)
def test_two_rounds_or_the_reason_why_not(
    world: str, wsa: str, strategy: str, cache: str, tmp_path: Path
) -> None:
    folder, refusal = tmp_path, ""
    try:
        config = composed(strategy, wsa, "mlp", cache, *WORLDS[world])
        result = simulate(config, folder / "run")
    except ConfigError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert len(refusal) < 300
        assert not (folder / "run").exists()
        return
    assert result["rounds"] == 2
    # A guard may find a liar out, as Flower's clipping does a free rider's update of zero.
    assert result["failed"] == (result["rejected"] if world.startswith("attack") else 0)
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 2
