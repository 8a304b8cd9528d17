"""What all tests share."""

from __future__ import annotations

import gc
import os
import re
import signal
from functools import cache
from pathlib import Path
from typing import Any

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C
os.environ.pop("HYDRA_FULL_ERROR", None)  # which the command sets, here and in a parent
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # Ray's workers have the other core
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray on 127.0.0.1 only
os.environ.setdefault("RAY_worker_niceness", "0")  # else its workers wait for all that is busy

# Each of several pytest processes keeps to a core, and so do the programs that its tests start: a
# run has one worker then. Starting one is what most of the time goes into.
CORES = os.sched_getaffinity(0)
NUMBER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
OWN = {sorted(CORES)[int(NUMBER) % len(CORES)]} if NUMBER else CORES
os.sched_setaffinity(0, OWN)

TESTS = Path(__file__).parent

from fedwsa.launcher import find_apps

find_apps()  # as the commands do: Ray's workers need it

# Before all other imports: it sets what Flower, Ray and Hydra read from the environment.
import experiments.commands.simulate  # noqa: F401, I001

import pytest
import ray
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

gc.freeze()  # Flower's strategies collect garbage at each reply

# Two cores shared with Ray: a time limit would measure the neighbours. The examples are the
# same in every run, so that a red test is red again when it is looked at.
settings.register_profile("fedwsa", deadline=None, derandomize=True)
settings.load_profile("fedwsa")


@pytest.fixture
def task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages be made outside a run: Flower asks who is speaking (no public setter)."""
    for name in ("run_id", "task_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


@cache
def asks_for_all_cores(file: str) -> bool:
    """Whether the tests of a module have two workers, or all cores for another reason."""
    return bool(re.search("all_cores|two_workers", (TESTS / file).read_text()))


class WholeModules(LoadScopeScheduling):
    """A pytest process plays whole modules, one those with two workers: a Ray for all of them."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0].removeprefix("tests/")
        return "all cores" if asks_for_all_cores(file) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeModules | None:
    """Of several pytest processes, with ``--dist loadfile``."""
    return WholeModules(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="module", autouse=True)
def _cores(request: pytest.FixtureRequest) -> None:
    """The cores of a module's tests; a Ray that runs would keep to those of the module before."""
    file = str(request.path.relative_to(TESTS))
    wanted = CORES if asks_for_all_cores(file) else OWN
    if os.sched_getaffinity(0) != wanted:
        ray.shutdown()
        os.sched_setaffinity(0, wanted)


@pytest.fixture(scope="module")
def all_cores() -> None:
    """All cores of the machine, for runs with two workers."""


@pytest.fixture(scope="module")
def no_ray() -> None:
    """No Ray in this process: Flower's simulation would wait for the CPUs of kept workers."""
    ray.shutdown()
