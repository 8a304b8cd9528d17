"""docs/extend.md, run as it stands: one of each part that a person may add."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from fedwsa.algorithms.objective import LocalRun, Objective
from fedwsa.algorithms.objectives import own_objectives, require_numbers
from fedwsa.config.component import ConfigError
from fedwsa.config.places import CONFIG_DIR
from tests.given import ROOT
from tests.given.runtimes import environment

PAGE = (ROOT / "docs" / "extend.md").read_text()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the page's files, in which its commands have run."""
    folder = tmp_path_factory.mktemp("mine")
    blocks = [block.partition("\n") for block in PAGE.split("```")[1::2]]
    [code], [commands] = ([t for kind, _, t in blocks if kind == k] for k in ("python", ""))
    files = {"mine.py": code}
    files |= dict(re.findall(r"^\| `(conf/\S+\.yaml)` \| `(.+)` \|$", PAGE, re.MULTILINE))
    files |= dict(re.findall(r"`(conf/\S+\.yaml)`,[^`]+```yaml\n(.+?)```", PAGE, re.DOTALL))
    assert code.startswith("# mine.py\n")
    assert len(files) == 7
    assert len(commands.splitlines()) == 3
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for command in commands.splitlines():
        program, *words = shlex.split(command)
        subprocess.run(
            [Path(sys.executable).with_name(program), *words],
            cwd=folder,
            env=environment(folder),
            check=True,
            timeout=600,
        )
    return folder


@pytest.mark.slow
def test_all_parts_took_part(done: Path) -> None:
    run = done / "first"
    config = yaml.safe_load((run / "config.yaml").read_text())
    for group in ("dataset", "partition", "model", "strategy"):
        assert config[group]["_target_"].startswith("mine.")
    sizes = [len(p) for p in yaml.safe_load((run / "partition.json").read_text())["indices"]]
    assert sizes == [150, 50, 50, 50]  # the first has half of 300
    assert pd.read_csv(run / "history.csv")["accuracy"].iloc[-1] > 0.9
    lines = (run / "lines.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "result"]


@pytest.mark.slow
def test_the_objective_kept_its_state_and_told_its_metric(done: Path) -> None:
    table = pd.read_csv(done / "first" / "clients.csv")
    assert (table["my-trainings"] == table["round"]).all()  # each client trains in each round


@pytest.mark.slow
def test_the_operator_merged(done: Path) -> None:
    first, second, both = (
        load_file(done / name)
        for name in ("first/model.safetensors", "second/model.safetensors", "both.safetensors")
    )
    for name, tensor in both.items():  # the lower of two is torch's median
        torch.testing.assert_close(tensor, torch.minimum(first[name], second[name]))


def test_the_page_names_every_group_and_no_option_of_ours() -> None:
    for name in re.findall(r"conf/(\S+\.yaml)", PAGE):
        assert not (CONFIG_DIR / name).exists()
        assert (CONFIG_DIR / name).parent.is_dir()


def test_an_objective_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^local\.objectives: cannot import nowhere\.Pull: No"):
        own_objectives(["nowhere.Pull"])
    with pytest.raises(ConfigError, match=r"^local\.objectives: torch\.nn\.Linear is no subclass"):
        own_objectives(["torch.nn.Linear"])


def test_a_metric_that_no_message_can_hold_is_named() -> None:
    class Says(Objective):
        def __init__(self) -> None:
            self.local = LocalRun(0.1)

    require_numbers(Says(), {"one": 1.0, "many": [1, 2.0]})
    with pytest.raises(TypeError, match=r"^Says\.end\(\): norm must be a number, .*not Tensor$"):
        require_numbers(Says(), {"norm": torch.zeros(1)})
