"""The command on our engine: what it settles, many machines, interruption, wrong input."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import ray
import torch
from omegaconf import OmegaConf
from ray._private import services
from safetensors.torch import load_file

from clients import footprint
from clients.measure import choose_cohort
from experiments.commands import runtimes
from experiments.commands.ray_start import early_workers, expects_local_ray
from experiments.commands.simulate import main, simulate
from fedwsa.data.federated import open_federated
from fedwsa.descendants import family
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from fedwsa.schema.fleet import Fleet
from fedwsa.simulation.cluster import SimulationError, connect
from tests.given.commands import Called, called
from tests.given.processes import all_end, catches, command_line, started
from tests.given.runtimes import environment, ran

DRAWING = "model._target_=tests.given.odd_models.drawing ~model.width ~model.depth"
COMMAND = [sys.executable, "-m", "fedwsa"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Called:
    """The command in this process, which has imported and started what takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDWSA_CACHE", str(tmp_path / "cache"))
    return called("fedwsa", main, monkeypatch, capsys)


def small(cache: str, *overrides: str) -> Config:
    fleet = ["rounds=2", "clients.count=6", "local.epochs=1", "evaluation.clients_every=2"]
    return compose([*fleet, f"cache_dir={cache}", *overrides])


def test_what_was_settled_stands_in_the_run_folder(cache: str, tmp_path: Path) -> None:
    simulate(small(cache, "wsa=on", "clients.table=true"), tmp_path)
    runtime = OmegaConf.load(tmp_path / "config.yaml").runtime
    assert (runtime.name, runtime.cohort) == ("ray", "off")
    assert runtime.workers == len(os.sched_getaffinity(0))
    table = pd.read_csv(tmp_path / "clients.csv")
    assert table["client"].tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert table["round"].tolist() == [1] * 6 + [2] * 6
    history = pd.read_csv(tmp_path / "history.csv")
    # The history's loss is the mean over these rows, by samples.
    first = table[table["round"] == 1]
    mean = (first["train_loss"] * first["num-examples"]).sum() / first["num-examples"].sum()
    assert history["train_loss"][0] == pytest.approx(mean, rel=1e-12)
    assert [len(row.split()) for row in first["wsa-kl"]] == [3] * 6  # a number per layer
    ray.shutdown()


@pytest.mark.slow
def test_a_cluster_of_two_nodes_gives_the_same_model_and_each_node_reads_its_own_data(
    cache: str, tmp_path: Path
) -> None:
    overrides = ["rounds=2", "clients.count=6", "local.epochs=1", "strategy=scaffold"]
    simulate(compose([*overrides, f"cache_dir={cache}"]), tmp_path / "here")
    ray.shutdown()
    there = ["runtime.address=ADDRESS", "cache_dir=$NODE_CACHE", f"hydra.run.dir={tmp_path}/there"]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.given.two_nodes",
            str(tmp_path),
            *COMMAND,
            *overrides,
            *there,
        ],
        check=True,
        timeout=600,
    )
    here, other = (load_file(tmp_path / f / "model.safetensors") for f in ("here", "there"))
    for key, weight in here.items():
        torch.testing.assert_close(other[key], weight, rtol=1e-4, atol=1e-6)
    for node in ("node0", "node1", "driver"):
        assert list((tmp_path / node / "data").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_with_the_history_and_without_a_process(
    number: signal.Signals, tmp_path: Path
) -> None:
    own = ["rounds=100000", "clients.count=4", "checkpoint.every=2", "hydra.run.dir=a run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([*COMMAND, *own], **pipes, cwd=tmp_path, env=environment(tmp_path)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "round   3/" in line:
                break
        processes = family(process.pid)
        assert len(processes) > 4
        process.send_signal(number)
        errors = process.communicate(timeout=600)[1]  # its rounds would take hours
    assert process.returncode == 128 + number
    line = (
        "fedwsa: interrupted; the history so far is in a run; it goes on by: fedwsa resume='a run'"
    )
    assert errors == f"{line}\n"
    assert len(pd.read_csv(tmp_path / "a run" / "history.csv")) >= 3
    assert all_end(processes)


@pytest.mark.slow
def test_a_run_that_is_repeated_goes_where_runs_go(tmp_path: Path) -> None:
    env = environment(tmp_path)
    for words in (
        ("rounds=1", "clients.count=2", "local.epochs=1", "hydra.run.dir=first"),
        ("-cp", str(tmp_path / "first"), "-cn", "config"),
    ):
        assert ran([*COMMAND, *words], tmp_path, env).returncode == 0
    [again] = (tmp_path / "runs").glob("*/*/model.safetensors")
    models = [load_file(file) for file in (tmp_path / "first" / "model.safetensors", again)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not (tmp_path / "outputs").exists()
    assert not list(tmp_path.rglob(".hydra"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["imports", "Ray starts", "Ray runs", "the folder is there"])
def test_a_signal_before_the_first_round_leaves_nothing(
    moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    def come(pid: int) -> bool:
        if moment == "imports":
            return catches(pid, signal.SIGTERM)  # Python itself has no handler for that
        if moment == "Ray starts":
            return len(family(pid)) > 1
        if moment == "Ray runs":
            return any("ray::" in command_line(own) for own in family(pid))
        return any(tmp_path.glob("runs/*/*/config.yaml"))

    places = {"cwd": tmp_path, "env": environment(tmp_path)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with started([*COMMAND, "rounds=100000"], **pipes, **places) as process:
        while not come(process.pid):
            assert process.poll() is None
            time.sleep(0.01)
        processes = family(process.pid)
        process.send_signal(number)
        errors = process.communicate(timeout=600)[1]
    assert process.returncode == 128 + number
    assert re.fullmatch("fedwsa: interrupted.*\n", errors)
    assert all_end(processes)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("runtime.workers=0", "runtime.workers: input should be greater than 0 (got 0)"),
        *(
            (
                f"runtime.cohort={value}",
                f"runtime.cohort: must be auto, off, or a whole number above 0 (got {value})",
            )
            for value in (0, 1.5)
        ),
        (
            "runtime.cohort=4 local.objectives=[tests.given.spoilt.OfOne]",
            "runtime.cohort=4: clients cannot be trained at once: OfOne looks at one model",
        ),
        ("runtime.gpus_per_worker=0.5", "runtime.gpus_per_worker: there is no CUDA GPU here"),
        ("runtime=flower runtime.cohort=4", "runtime: cohort needs runtime=ray"),
        (
            f"runtime.cohort=4 {DRAWING}",
            "runtime.cohort=4: clients cannot be trained at once: what it draws would be another",
        ),
        ("runtime.address=127.0.0.1:9", "runtime.address=127.0.0.1:9: nobody answers there"),
        ("runtime.address=nowhere", "runtime.address=nowhere: must be auto or HOST:PORT"),
    ],
)
def test_what_cannot_be_ends_in_one_line_before_anything_is_written(
    override: str, line: str, command: Called, tmp_path: Path
) -> None:
    code, _, errors = command(*override.split())
    assert code == 1
    assert errors.startswith("fedwsa: ")
    assert len(errors.splitlines()) == 1
    assert line in errors
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize(("measured", "expected"), [(8, (2, 1.0, 8)), (1, (6, 1 / 3, "off"))])
def test_a_gpu_has_one_worker_where_that_trains_stacks(
    measured: int, expected: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(runtimes, "cores", lambda: 6)
    monkeypatch.setattr(runtimes, "choose_cohort", lambda *_: (measured, "as measured"))
    config = compose().model_copy(update={"device": "cuda"})
    federation = SimpleNamespace(config=config, data=None, sizes=SimpleNamespace(of_client=[]))
    found = runtimes.settled(federation)  # type: ignore[arg-type]
    assert (found.workers, found.gpus_per_worker, found.cohort) == expected


def test_a_cohort_for_which_there_is_no_memory_is_refused_with_what_fits(
    command: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(footprint, "free_bytes", lambda device: 10**7)
    words = ["clients.count=40", "clients.fraction=1", "runtime.workers=1", "runtime.cohort=30"]
    code, _, errors = command(*words)
    assert code == 1
    # 55,210 weights of 4 bytes: themselves, gradients twice, a moment; and what a batch leaves.
    line = r"fedwsa: runtime\.cohort=30: in each of 1 workers 30 clients would take (0\.0\d+) GB, "
    line += r"of 0\.01 GB that are free for all, and four fifths may be used: at most (\d) fit\n"
    found = re.fullmatch(line, errors)
    assert found
    each = float(found[1]) / 30
    assert each * 1e9 == pytest.approx(4 * 4 * 55210, rel=0.2)
    assert int(found[2]) == int(0.8 * 0.01 / each)
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.slow
def test_what_lies_in_the_working_folder_takes_no_app_s_place(tmp_path: Path) -> None:
    for name in ("clients", "server"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('somebody else')")
    done = ran([*COMMAND, "rounds=1", "clients.count=2"], tmp_path, environment(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_that_is_refused_while_ray_starts_ends_with_it(tmp_path: Path) -> None:
    done = ran([*COMMAND, "runtime.gpus_per_worker=0.5"], tmp_path, environment(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "fedwsa: runtime.gpus_per_worker: there is no CUDA GPU here\n"
    assert not list(tmp_path.glob("runs/*/*"))


def test_where_no_cluster_runs_auto_says_so(no_ray, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray looks at all processes of the machine, and would find what other tests run.
    monkeypatch.setattr(services, "find_gcs_addresses", functools.cache(lambda: set()))
    with pytest.raises(SimulationError, match="address=auto: no Ray cluster: Could not"):
        connect("auto")


def test_too_many_workers_are_cut_with_a_warning(cache: str, tmp_path: Path) -> None:
    simulate(small(cache, "runtime.workers=64", "rounds=1"), tmp_path)
    assert OmegaConf.load(tmp_path / "config.yaml").runtime.workers == len(os.sched_getaffinity(0))
    ray.shutdown()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["clients.count=20"], "a worker has only 10 clients a round"),
        (
            ["clients.count=200", "partition=iid", "local.weight_augmentation=crop"],
            "local.weight_augmentation is set",
        ),
        (
            ["clients.count=64", "partition=iid", "model=resnet20", "model.width=6"],
            "too large to gain",
        ),
    ],
)
def test_auto_says_why_it_trains_one_by_one(overrides, reason: str, cache: str) -> None:
    config = small(cache, *" ".join(overrides).split())
    size, why = chosen(config)
    assert size == 1
    assert reason in why


def chosen(config: Config) -> tuple[int, str]:
    data = open_federated(config.data_spec)
    sizes = Fleet(config).sizes(data.whole.shape, data.whole.classes)
    return choose_cohort(config, data, 2, sizes)


def test_auto_looks_at_the_size_that_most_clients_have(cache: str) -> None:
    config = small(cache, "clients.count=40", "clients.sizes={S: 0.7, L: 0.3}", "partition=iid")
    assert chosen(config) == (
        1,
        "one by one, as a worker has only 14 clients a round of size S, which most have",
    )


def test_auto_trains_many_small_clients_at_once(cache: str) -> None:
    config = small(cache, "clients.count=200", "partition=iid", "model.width=0.3")
    size, why = chosen(config)
    assert size in (16, 64)
    assert why.startswith(f"{size} at once, measured ")


def test_ray_is_started_early_only_where_it_will_be_used() -> None:
    assert expects_local_ray([])
    assert expects_local_ray(["wsa=on", "--multirun", "seed=0,1"])
    for words in (["--help"], ["--cfg", "job"], ["runtime=flower"], ["runtime.address=auto"]):
        assert not expects_local_ray(words)
    assert not expects_local_ray(["-cp", "x", "-cn", "config"])


def test_workers_begin_early_where_a_command_line_does_not_say_how_many() -> None:
    assert early_workers(["wsa=on"]) == len(os.sched_getaffinity(0))
    assert early_workers(["runtime.workers=1"]) == early_workers(["device=cuda"]) == 0
