"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C
os.environ.pop("HYDRA_FULL_ERROR", None)  # which the command sets, here and in a parent
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # Ray's workers have the other core
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray on 127.0.0.1 only
os.environ.setdefault("RAY_worker_niceness", "0")  # else its workers wait for all that is busy

# Each of several pytest processes keeps to a core: its runs have one worker, which does not have to
# wait for another's, and starting one is what most of the time goes into.
CORES = os.sched_getaffinity(0)
if name := os.environ.get("PYTEST_XDIST_WORKER"):
    os.sched_setaffinity(0, {sorted(CORES)[int(name.removeprefix("gw")) % len(CORES)]})

from fedwsa.launcher import find_apps

find_apps()  # as the commands do: Ray's workers need it

# Before all other imports: it sets what Flower, Ray and Hydra read from the environment.
import experiments.commands.simulate  # noqa: F401, I001

import pytest
import ray
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings

gc.freeze()  # Flower's strategies collect garbage at each reply

# Two cores shared with Ray: a time limit would measure the neighbours. The examples are the
# same in every run, so that a red test is red again when it is looked at.
settings.register_profile("fedwsa", deadline=None, derandomize=True)
settings.load_profile("fedwsa")


@pytest.fixture(autouse=True)
def _all_cores_for_slow_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """All cores for tests that are marked slow: many start several programs."""
    own = os.sched_getaffinity(0)
    if request.node.get_closest_marker("slow"):
        os.sched_setaffinity(0, CORES)
    yield
    os.sched_setaffinity(0, own)


@pytest.fixture
def task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages be made outside a run: Flower asks who is speaking (no public setter)."""
    for name in ("run_id", "task_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


@pytest.fixture(scope="module")
def all_cores() -> Iterator[None]:
    """All cores of the machine, for runs with two workers."""
    own = os.sched_getaffinity(0)
    ray.shutdown()
    os.sched_setaffinity(0, CORES)
    yield
    ray.shutdown()
    os.sched_setaffinity(0, own)


@pytest.fixture(scope="module")
def no_ray() -> None:
    """No Ray in this process: Flower's simulation would wait for the CPUs of kept workers."""
    ray.shutdown()
