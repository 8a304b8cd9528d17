"""Runs killed by SIGKILL at random moments: resumed, they end as if nothing had happened."""

from __future__ import annotations

import random
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.commands.simulate import resume, simulate
from fedwsa.descendants import family
from fedwsa.schema.compose import compose
from tests.given.checkpoint import assert_same_run
from tests.given.processes import all_end, started

pytestmark = pytest.mark.slow

FEDWSA = [sys.executable, "-m", "experiments.commands.start"]
ROUNDS = 10
RUN = [
    *(f"rounds={ROUNDS}", "clients.count=4", "clients.fraction=0.5", "clients.table=true"),
    *("local.epochs=1", "runtime.workers=1", "runtime.cohort=off", "checkpoint.every=1"),
]
MOMENTS = random.Random(0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def killed(folder: Path, words: list[str], share: float) -> int:
    """Start a run and kill it; returns how many rounds its files know of.

    Parameters
    ----------
    share
        Of the rounds, from the first checkpoint on, after which the moment has come.
    """
    checkpoints = folder / "checkpoints"

    def written() -> int:
        return max((int(p.name[-6:]) for p in checkpoints.glob("round-??????")), default=0)

    with started([*FEDWSA, *words, f"hydra.run.dir={folder}"], stdout=subprocess.DEVNULL) as run:
        end = time.monotonic() + 240
        while not (first := written()):
            assert run.poll() is None
            assert time.monotonic() < end
            time.sleep(0.002)
        seen, start = first, time.monotonic()
        while seen < first + share * (ROUNDS - first) and run.poll() is None:
            time.sleep(0.002)
            seen = max(seen, written())
        # Not always as a checkpoint appears: some way into a round like those before.
        lasts = (time.monotonic() - start) / max(1, seen - first)
        time.sleep(MOMENTS.random() * lasts)
        workers = [pid for pid in family(run.pid)[1:] if is_worker(pid)]
        run.kill()  # or it has just ended
    assert all_end(workers, 30), "its workers live on"  # Ray's own agents notice in a minute
    return seen


def is_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"ray::W", b"ray::I"))
    except OSError:  # it has ended meanwhile
        return False


def go_on(folder: Path) -> None:
    if not (folder / "result.json").exists():  # else it was killed behind its last round
        resume(folder)


def all_killed(runs: dict[Path, list[str]]) -> list[int]:
    """Two at a time: most of a run is the start of its programs."""
    with ThreadPoolExecutor(2) as pool:
        shares = [MOMENTS.random() for _ in runs]
        return list(pool.map(killed, runs, runs.values(), shares))


@pytest.mark.timeout(1200)
def test_a_run_killed_at_ten_random_moments_ends_as_one_that_was_not(cache, tmp_path) -> None:
    words = [*RUN, "strategy=scaffold", "wsa=on", f"cache_dir={cache}"]
    folders = [tmp_path / f"run-{number}" for number in range(10)]
    seen = all_killed(dict.fromkeys(folders, words))
    assert len(set(seen)) > 3, "the moments were not spread"
    simulate(compose(words), tmp_path / "whole")
    for folder in folders:
        go_on(folder)
        assert_same_run(tmp_path / "whole", folder, "scopes.csv", "events.jsonl")


MEMORIES = [
    "strategy=fedadam",
    "strategy=fedyogi wsa=on",
    "strategy=fedadagrad",
    "strategy=fedavgm",
    "strategy=feddyn",
    "strategy=moon",
    "strategy=fedper model=cnn",
    "strategy=fedbn model=resnet20 model.width=0.25",
    "strategy=local",
    "strategy=wave 'clients.sizes={S: 0.5, L: 0.5}'",
    "strategy=dp_server_adaptive wsa=on",
    "strategy=dp_client_adaptive",
    "pace=fedbuff pace.buffer=2 clients.speed_spread=1 clients.dropout=0.2 wsa=on",
    "evaluation.validation=0.2 evaluation.patience=20 evaluation.keep_best=true",
]


@pytest.fixture(scope="module")
def once_killed(cache: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A killed run of each."""
    folders = {options: tmp_path_factory.mktemp("kills") / "run" for options in MEMORIES}
    all_killed({folders[o]: words_of(o, cache) for o in MEMORIES})
    return folders


def words_of(options: str, cache: str) -> list[str]:
    return [*RUN, *shlex.split(options), f"cache_dir={cache}"]


@pytest.mark.parametrize("options", MEMORIES)
def test_so_does_one_of_each_strategy_with_a_memory(options, cache, once_killed, tmp_path) -> None:
    run, whole = once_killed[options], tmp_path / "whole"
    simulate(compose(words_of(options, cache)), whole)
    go_on(run)
    more = ["scopes.csv"] if "wsa=on" in options else []
    assert_same_run(whole, run, *more)
    if "keep_best" in options:
        best = [load_file(folder / "best.safetensors") for folder in (whole, run)]
        assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])
