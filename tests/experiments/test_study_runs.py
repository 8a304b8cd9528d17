"""Studies that really run: in parallel, interrupted, resumed, with cells that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from fedwsa.descendants import family
from tests.given.processes import all_end, started
from tests.given.runtimes import ran

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).with_name("fedwsa-study")
TINY = "base: [rounds=2, clients.count=4, local.epochs=1, runtime.cohort=off]\n"

MINE = """
import os
from flwr.serverapp.strategy import FedAvg


class Raises(FedAvg):
    def aggregate_train(self, server_round, replies):
        raise ValueError("no model today")


class Dies(FedAvg):
    def configure_train(self, server_round, *args):
        os._exit(3)
"""


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "FEDWSA_CACHE": str(folder / "cache"), "COLUMNS": "100"}


def fedwsa_study(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ran([COMMAND, *arguments], folder, environment(folder))


def result_times(folder: Path) -> dict[str, int]:
    return {f.parent.name: f.stat().st_mtime_ns for f in folder.glob("*/result.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a study of four cells that has run, two at a time."""
    folder = tmp_path_factory.mktemp("study")
    text = TINY + "axes: {wsa: [off, on], seed: [0, 1]}\nbaseline: {wsa: off}\n"
    (folder / "four.yaml").write_text(text)
    done = fedwsa_study(folder, "four.yaml", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line[:3] for line in lines[:4]] == ["1/4", "2/4", "3/4", "4/4"]
    assert all("accuracy 0." in line for line in lines[:4])
    assert "(Holm) for 1 comparison in the table" in done.stdout
    return folder


def test_each_cell_is_a_run_folder_and_the_study_says_what_it_is(finished: Path) -> None:
    folder = finished / "runs" / "studies" / "four"
    study = json.loads((folder / "study.json").read_text())
    names = [f"wsa={wsa},seed={seed}" for seed in (0, 1) for wsa in ("off", "on")]
    assert [cell["folder"] for cell in study["cells"]] == names
    assert study["study"]["baseline"] == {"wsa": "off"}
    assert "torch" in study["environment"]["packages"]
    for name in names:
        assert len(pd.read_csv(folder / name / "history.csv")) == 2
        assert (folder / name / "model.safetensors").exists()
        scores = pd.read_csv(folder / name / "client_scores.csv")
        assert scores["round"].tolist() == [2] * 4
        mean = json.loads((folder / name / "result.json").read_text())["client_accuracy_mean"]
        assert scores["accuracy"].mean() == pytest.approx(mean)


def test_a_half_written_cell_runs_again_and_finished_ones_stay(finished: Path) -> None:
    folder = finished / "runs" / "studies" / "four"
    before = result_times(folder)
    half = folder / "wsa=on,seed=1"
    history = (half / "history.csv").read_text()
    (half / "result.json").unlink()
    (half / "history.csv").write_text(history.splitlines()[0] + "\n1,0.1")
    dry = fedwsa_study(finished, "four.yaml", "--dry-run")
    assert "interrupted  wsa=on,seed=1\n4 cells, 1 to run" in dry.stdout
    done = fedwsa_study(finished, "four.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 of 4 cells are finished already\n1/1  wsa=on,seed=1  ")
    after = result_times(folder)
    assert {name for name in before if after[name] != before[name]} == {half.name}
    assert (half / "history.csv").read_text() == history  # the same run, to the bit


def test_finished_cells_of_another_configuration_are_not_mixed_in(finished: Path) -> None:
    before = result_times(finished / "runs" / "studies" / "four")
    done = fedwsa_study(finished, "four.yaml", "rounds=3")
    assert done.returncode == 1
    assert done.stderr == (
        "fedwsa-study: runs/studies/four/wsa=off,seed=0 (and 3 other cells): finished with another "
        "configuration: rounds was 2, is 3; name another --folder, or move these away\n"
    )
    assert result_times(finished / "runs" / "studies" / "four") == before


def test_a_cell_that_cannot_work_is_found_before_the_first_runs(tmp_path: Path) -> None:
    text = TINY + "axes: {wsa.strength: [1, -1], model: [mlp, vgg11], seed: [0]}\n"
    (tmp_path / "bad.yaml").write_text(text)
    done = fedwsa_study(tmp_path, "bad.yaml", "--workers", "1")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "fedwsa-study: cell wsa.strength=1,model=vgg11,seed=0 (and 2 other kinds of cells): "
        "model: vgg11 needs images of at least 32x32 pixels"
    )
    text = "base: [partition.alpha=1]\naxes: {partition: [pathological]}\n"
    (tmp_path / "key.yaml").write_text(text)
    done = fedwsa_study(tmp_path, "key.yaml", "--dry-run")
    assert "partition.alpha: unknown key; " in done.stderr
    assert "mean partition.alpha?" not in done.stderr  # the other groups' keys are no help
    assert not (tmp_path / "runs").exists()


def test_cells_that_fail_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "s.yaml").write_text(
        TINY
        + """axes:
  strategy:
    dies: [strategy._target_=mine.Dies]
    raises: [strategy._target_=mine.Raises]
    fedavg: []
"""
    )
    done = fedwsa_study(tmp_path, "s.yaml", "--workers", "1", "--folder", "out")
    assert done.returncode == 1
    raised = "round 1: Raises.aggregate_train raised ValueError: no model today (mine.py:8)"
    died = "its worker process ended with exit code 3; see out/logs/worker-0.log"
    assert done.stderr.splitlines() == [
        f"fedwsa-study: strategy=dies: {died}",
        f"fedwsa-study: strategy=raises: {raised}",
    ]
    for name, reason in (("dies", died), ("raises", raised)):
        failed = json.loads((tmp_path / "out" / f"strategy={name}" / "failed.json").read_text())
        assert failed == {"reason": reason}
        assert f"failed: strategy={name} seed=0: {reason}" in done.stdout
    assert (tmp_path / "out" / "strategy=fedavg" / "result.json").exists()


def test_ctrl_c_ends_all_processes_and_keeps_what_is_finished(tmp_path: Path) -> None:
    text = "base: [clients.count=4, runtime.cohort=off]\n"
    text += "axes: {rounds: [1, 20000, 30000]}\n"
    (tmp_path / "long.yaml").write_text(text)
    command = [COMMAND, "long.yaml", "--workers", "2", "--folder", "out"]
    places = {"cwd": tmp_path, "env": environment(tmp_path)}
    with started(command, stderr=subprocess.PIPE, **places) as process:
        deadline = time.monotonic() + 300
        second = tmp_path / "out" / "rounds=30000" / "history.csv"
        while not second.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert second.exists()
        children = family(process.pid)[1:]
        assert len(children) > 4  # workers, and their Rays
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert errors.endswith("interrupted; the same command goes on with what is left\n")
    assert (tmp_path / "out" / "rounds=1" / "result.json").exists()
    assert not (tmp_path / "out" / "rounds=20000" / "result.json").exists()
    assert all_end(children)
