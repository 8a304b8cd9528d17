"""Checkpoints: what a resumed run depends on is all in them, and they are whole or not there."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg

from experiments.commands.simulate import resume, simulate
from fedwsa.algorithms.traits import Traits
from fedwsa.config.component import ConfigError
from fedwsa.runfolder.locks import locked
from fedwsa.schema.compose import compose
from server import checkpoint
from server.checkpoint import Checkpoint, Checkpoints
from tests.given.checkpoint import TINY, assert_same_run, interrupted


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "strategy",
    [
        "strategy=scaffold",
        "strategy=feddyn",
        "strategy=moon",
        "strategy=fedadam",
        "strategy=fedavgm",
        "strategy=scaffold wsa=on",
        "strategy=dp_server_adaptive",
        "strategy=wave",
        "sampler=utility",
    ],
)
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    strategy: str, cache: str, tmp_path: Path
) -> None:
    """Two rounds lie between the last checkpoint and the interruption: they are run again."""
    config = interrupted(tmp_path / "stopped", cache, 2, 3, *strategy.split())
    whole = config.model_copy(update={"checkpoint": compose().checkpoint})
    simulate(whole, tmp_path / "whole")
    assert (tmp_path / "stopped" / "failed.json").exists()
    resume(tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "failed.json").exists()
    scopes = ["scopes.csv"] if "wsa=on" in strategy else []
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", *scopes)


def test_control_variates_and_clients_memory_are_in_the_checkpoint(
    cache: str, tmp_path: Path
) -> None:
    config = interrupted(tmp_path / "run", cache, 1, 2, "strategy=scaffold")
    strategy = FedAvg()
    found = Checkpoints(tmp_path / "run", strategy).newest()
    assert found.round == 2
    [memory] = found.strategy
    assert max(t.abs().max() for t in memory["control"].values()) > 0
    rounds = (tmp_path / "run" / "history.csv").read_text().splitlines()[1:]
    seen = {int(c) for row in rounds for c in row.rpartition(",")[2].split()}
    assert set(found.clients) == seen
    for content in found.clients.values():
        kept = content["scaffold"]
        assert set(kept) == set(found.arrays)
    assert config.checkpoint.every == 1


@pytest.mark.slow
def test_a_killed_run_goes_on_by_the_command(cache: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.commands.start"]
    plain = {**os.environ, "HYDRA_FULL_ERROR": "0"}  # which the tests' own process has set

    def resumed() -> subprocess.CompletedProcess[str]:
        words = [*command, f"resume={folder}"]
        return subprocess.run(words, capture_output=True, text=True, env=plain)

    own = [*TINY, "rounds=12", "strategy=scaffold", f"cache_dir={cache}", "runtime.workers=1"]
    folder = tmp_path / "run"
    run = [*command, *own, "checkpoint.every=1", f"hydra.run.dir={folder}"]
    with subprocess.Popen(run, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        end = time.monotonic() + 600
        while not list((folder / "checkpoints").glob("round-00000[3-9]")):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (folder / "result.json").exists()
    done = resumed()
    assert done.returncode == 0, done.stderr
    whole = compose([*own, "runtime.cohort=off"])
    simulate(whole, tmp_path / "whole")
    assert (folder / "history.csv").read_bytes() == (tmp_path / "whole/history.csv").read_bytes()
    again = resumed()
    assert again.returncode == 1
    assert again.stderr.strip() == f"fedwsa: resume: the run in {folder} is finished"


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path / "run", cache, 1, 3, "strategy=scaffold")
    said: list[str] = []
    monkeypatch.setattr(
        checkpoint.logger, "warning", lambda text, *values: said.append(text % values)
    )
    strategy = FedAvg()
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [place.name for place in newest] == ["round-000002", "round-000003"]
    blob = bytearray((newest[1] / "arrays.safetensors").read_bytes())
    blob[-1] ^= 1
    good = (newest[1] / "arrays.safetensors").read_bytes()
    (newest[1] / "arrays.safetensors").write_bytes(blob)
    assert Checkpoints(tmp_path / "run", strategy).newest().round == 2
    assert said[0].startswith(f"{newest[1]} is damaged: ")
    assert said[1:] == ["going on from the one before, after round 2"]
    (newest[1] / "arrays.safetensors").write_bytes(good)
    assert Checkpoints(tmp_path / "run", strategy).newest().round == 3
    text = (newest[1] / "state.json").read_text()
    other = re.sub(r'\["moved", \d+', '["moved", 77', text)  # a number, which is read as well
    assert other != text
    (newest[1] / "state.json").write_text(other)
    assert Checkpoints(tmp_path / "run", strategy).newest().round == 2
    (newest[0] / "state.json").write_text("{")
    with pytest.raises(ConfigError, match="all its checkpoints are damaged"):
        Checkpoints(tmp_path / "run", strategy).newest()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "there is no run in"),
        (lambda folder: folder.mkdir(), "there is no run in"),
        (lambda folder: simulate(compose([*TINY, "rounds=1"]), folder), "is finished"),
    ],
)
def test_what_cannot_be_resumed_is_refused_in_one_line(
    make, message: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("FEDWSA_CACHE", str(tmp_path / "cache"))
    make(tmp_path / "run")
    with pytest.raises(ConfigError, match=message) as caught:
        resume(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["remove", "cut", "garble"])
def test_a_history_with_gaps_is_not_gone_on_with(damage: str, cache: str, tmp_path: Path) -> None:
    interrupted(tmp_path / "run", cache, 1, 2)
    file = tmp_path / "run" / "history.csv"
    rows = file.read_text().splitlines()
    if damage == "remove":
        file.unlink()
    else:
        kept = [rows[0], *rows[2:]] if damage == "cut" else ["x" * 9, *rows[1:]]
        file.write_text("\n".join(kept) + "\n")
    before = {f.name: f.read_bytes() for f in (tmp_path / "run").iterdir() if f.is_file()}
    with pytest.raises(ConfigError, match=r"history.csv lacks some of the 2 rounds"):
        resume(tmp_path / "run")
    assert before == {f.name: f.read_bytes() for f in (tmp_path / "run").iterdir() if f.is_file()}


def test_a_damaged_configuration_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("rounds: 3\n: [\n")
    with pytest.raises(ConfigError, match=r" is damaged: no partition\.json; run it again$"):
        resume(tmp_path)
    (tmp_path / "partition.json").touch()
    with pytest.raises(ConfigError, match=r"config.yaml is damaged, line 2$"):
        resume(tmp_path)
    for content, said in {
        b"rounds: \xff": r"config.yaml is damaged$",
        b"": r"config.yaml is damaged: it holds no configuration$",
        b"rounds: 0": r"config.yaml: rounds: input should be greater than 0",
    }.items():
        (tmp_path / "config.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            resume(tmp_path)


def test_a_checkpoint_of_another_configuration_is_refused_with_the_keys(
    cache: str, tmp_path: Path
) -> None:
    interrupted(tmp_path / "run", cache, 1, 2)
    file = tmp_path / "run" / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("  lr: ", "  lr: 1").replace("workers: null", "workers: 1"))
    with pytest.raises(ConfigError, match=r"is of another configuration: local\.lr was .*, is 1"):
        resume(tmp_path / "run")
    file.write_text(text.replace("workers: null", "workers: 1"))  # what is learned is the same
    resume(tmp_path / "run")


def test_a_run_that_goes_on_is_not_resumed(cache: str, tmp_path: Path) -> None:
    interrupted(tmp_path / "run", cache, 1, 2)
    with (
        locked(tmp_path / "run" / "config.yaml", "cannot be"),
        pytest.raises(ConfigError, match="another process is still running it"),
    ):
        resume(tmp_path / "run")


class Remembers(FedAvg):
    """Somebody's strategy with a memory that is neither number nor array."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.notes = np.random.default_rng(0)


class BeginsToRemember(FedAvg):
    """One that has such a memory after its first round alone."""

    def aggregate_train(self, server_round, replies):
        self.notes = {"file": np.random.default_rng(0)}
        return super().aggregate_train(server_round, replies)


class Draws(Remembers):
    """One that says that it is no memory, and has another, of arrays and numbers."""

    traits = Traits(transient=("notes",))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.momentum, self.count = {"w": np.zeros(1)}, 0

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.count += 1
        kept = self.momentum.get("hidden0.bias", 0.0)
        bias = arrays["hidden0.bias"].numpy()
        self.momentum = {"hidden0.bias": 0.5 * kept + self.count * bias}
        arrays["hidden0.bias"] = Array((bias + 0.1 * self.momentum["hidden0.bias"]).astype("f4"))
        return arrays, metrics


def theirs(strategy: type) -> str:
    return f"strategy._target_=tests.server.test_checkpoint.{strategy.__name__}"


def test_a_memory_that_cannot_be_stored_is_named_at_the_start(cache: str, tmp_path: Path) -> None:
    own = [theirs(Remembers), "checkpoint.every=1", f"cache_dir={cache}"]
    with pytest.raises(ConfigError, match="Remembers remembers notes, a Generator, which") as said:
        simulate(compose([*TINY, *own]), tmp_path / "run")
    assert "\n" not in str(said.value)
    assert not (tmp_path / "run").exists()
    simulate(compose([*TINY, *own[:1], "rounds=1", own[2]]), tmp_path / "without")


def test_or_else_at_the_first_checkpoint(cache: str, tmp_path: Path) -> None:
    own = [theirs(BeginsToRemember), "checkpoint.every=1", f"cache_dir={cache}"]
    with pytest.raises(ConfigError, match="BeginsToRemember remembers notes, a dict, which"):
        simulate(compose([*TINY, *own]), tmp_path / "run")


def test_a_stranger_s_arrays_and_numbers_are_saved(cache: str, tmp_path: Path) -> None:
    config = interrupted(tmp_path / "stopped", cache, 2, 3, theirs(Draws))
    simulate(config.model_copy(update={"checkpoint": compose().checkpoint}), tmp_path / "whole")
    resume(tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_flower_s_runtime_cannot_tell_what_clients_keep() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.every needs runtime=ray"):
        compose(["checkpoint.every=1", "runtime=flower"])


def test_a_checkpoint_that_cannot_be_written_leaves_those_before(tmp_path: Path) -> None:
    strategy = FedAvg()
    checkpoints = Checkpoints(tmp_path, strategy)
    good = Checkpoint(1, ArrayRecord(), checkpoints.memory())
    checkpoints.write(good)
    bad = Checkpoint(2, ArrayRecord(), [], {0: RecordDict({"c": ConfigRecord({"b": b"x"})})})
    with pytest.raises(ConfigError, match="a client keeps a bytes, which a checkpoint cannot"):
        checkpoints.write(bad)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["round-000001"]
    assert checkpoints.newest().round == 1


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, FedAvg())
    checkpoints.write(Checkpoint(1, ArrayRecord(), checkpoints.memory()))
    large = ArrayRecord({"w": Array(np.zeros(100_000))})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # no file may be larger
    try:
        with pytest.raises(ConfigError, match=r"checkpoint\.every: cannot write .*round-000002"):
            checkpoints.write(Checkpoint(2, large, checkpoints.memory()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["round-000001"]
    assert checkpoints.newest().round == 1


def test_a_table_that_is_gone_is_named_before_any_round(cache: str, tmp_path: Path) -> None:
    interrupted(tmp_path / "run", cache, 1, 2)
    (tmp_path / "run" / "clients.csv").unlink()
    for _ in range(2):  # and nothing was lost by asking
        with pytest.raises(ConfigError, match=r"clients\.csv is gone, and with it the 2 rounds th"):
            resume(tmp_path / "run")
    _, *rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["1", "2"]
