"""A worker process of a study: checks cells, and runs them one after the other.

It reads a JSON line per task from its standard input and answers each with one on what was its
standard output; what runs print goes to its log, which the parent has opened as standard error.
It keeps one Ray of its own for all its cells, and ends with its parent.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedwsa.descendants import end_descendants

# What a run needs is imported when the parent says how many cores Ray has: Ray reads it then.


def main() -> None:
    """Answer tasks until the parent has no more."""
    sys.path.append(os.getcwd())  # a strategy, model or partition of one's own lies there
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    tasks: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=[tasks], daemon=True).start()
    while True:
        task = tasks.get()
        name = task.pop("task")
        try:
            answer = {"ok": True, **_TASKS[name](**task)}
        except BaseException as error:
            answer = {"ok": False, "error": _reason(error, task.get("overrides", ()))}
            traceback.print_exc()
        sys.stdout.flush()
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


def _read(tasks: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    _end()  # the parent has ended, or needs no more


def _end() -> NoReturn:
    """End at once, with Ray's processes: all files of a finished cell are written."""
    end_descendants(os.getpid())
    os._exit(0)


def _begin(cpus: int) -> dict[str, Any]:
    """Start Ray in the background; ``cpus`` 0: the cells need none."""
    import experiments.commands.simulate  # noqa: F401  (sets what Ray reads from the environment)
    from experiments.commands.ray_start import RayStart

    if cpus:
        RayStart.at(None, num_cpus=cpus)
    from server.folder import environment

    return {"environment": environment()}


def _check(overrides: list[str]) -> dict[str, Any]:
    """Compose a cell and set it up without running it; returns its configuration."""
    from experiments.commands import runtimes
    from fedwsa.learngene import Standard
    from fedwsa.learngene.pretrain import build_method
    from fedwsa.schema.compose import compose, free_arguments
    from server.federation import Federation

    config = compose(free_arguments(overrides))
    method, init = build_method(config.init.method), config.init
    ready = runtimes.located(config)
    if not isinstance(method, Standard):  # what would be learned before the first round is not
        init = type(init).of("fedwsa.learngene.Standard", file=None, public=init.public)
        ready = ready.model_copy(update={"init": init})
    Federation(ready, Path(os.devnull) / "unused")
    return {"config": config.model_dump(by_alias=True, mode="json")}


def _run(config: dict[str, Any], folder: str) -> dict[str, Any]:
    """Run a cell of the study; its result."""
    from experiments.commands.simulate import simulate
    from fedwsa.schema.config import Config

    start = time.perf_counter()
    result = simulate(Config.model_validate(config), Path(folder), pictures=True)
    return {"seconds": time.perf_counter() - start, "result": result}


_TASKS: dict[str, Callable[..., dict[str, Any]]] = {"begin": _begin, "check": _check, "run": _run}


def _reason(error: BaseException, overrides: Sequence[str]) -> str:
    """One line for a person."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fedwsa.config.component import ConfigError
    from fedwsa.config.explain import explain
    from server.rounds import RunError

    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return explain(error, overrides)
    text = " ".join(str(error).split())
    known = isinstance(error, (ConfigError, RunError))
    return text if known else f"{type(error).__name__}: {text}"
