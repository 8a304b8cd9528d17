"""Runs the cells of a study that are not finished yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from experiments.commands.ray_start import expects_local_ray
from experiments.studies.display import Display
from experiments.studies.folder import (
    prepare,
    refuse_other_runs,
    refuse_strange_files,
    state_of,
)
from experiments.studies.pool import Job, Pool
from experiments.studies.schema import SEED, Cell, Study, merged
from fedwsa import interruption
from fedwsa.config.component import ConfigError
from fedwsa.runfolder.write import STUDY, write_failure, write_json
from fedwsa.simulation.cluster import cores

_REFRESH = 0.5  # seconds between pictures
_RAY_WORKERS = "runtime.workers="


class Runner:
    """Finishes cells of a study.

    Parameters
    ----------
    cells
        Which.
    folder
        Of the study.
    workers
        Processes, each with one cell at a time; None: as many as cores allow.
    console
        Where progress is shown.

    Attributes
    ----------
    failed : dict of str to str
        Cells that failed, and why.
    environment : dict
        Commit and versions of what ran.
    """

    def __init__(
        self, cells: Sequence[Cell], folder: Path, workers: int | None, console: Console
    ) -> None:
        self.folder, self.console = folder, console
        self.cells = [_with_one_worker(cell) for cell in cells]
        self._cpus = max(_ray_workers(cell) for cell in self.cells)
        self.workers = workers or max(1, cores() // self._cpus)
        self.environment: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self._configs: dict[str, dict[str, Any]] = {}

    def unfinished(self) -> list[Cell]:
        """The cells that are still to run."""
        return [c for c in self.cells if state_of(self.folder / c.name) != "finished"]

    def check(self) -> None:
        """Set every cell up without running it; of those that differ in the seed alone, one.

        Raises
        ------
        ConfigError
            If a cell cannot work, or a finished one was made with another configuration.
        """
        with Pool(self.workers, 0, None) as pool:
            self._check(pool)

    def run(self, checked: Callable[[dict[str, Any]], None]) -> None:
        """Run what is not finished.

        Parameters
        ----------
        checked
            Called with commit and versions of what runs, once every cell is known to work.

        Raises
        ------
        ConfigError
            See :meth:`check`; nothing has run then.
        """
        if not self.unfinished():
            self.check()
            checked(self.environment)
            return
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        local = all(expects_local_ray(cell.overrides) for cell in self.cells)
        with Pool(self.workers, self._cpus if local else 0, logs) as pool:
            self._check(pool)
            waiting = self.unfinished()
            for cell in waiting:
                refuse_strange_files(self.folder / cell.name)
            checked(self.environment)
            self._run(pool, waiting)

    def _check(self, pool: Pool) -> None:
        first: dict[str, Cell] = {}
        for cell in self.cells:
            first.setdefault(cell.group, cell)
        found: dict[str, dict[str, Any]] = {}
        wrong: dict[str, str] = {}
        jobs = [
            Job(group, {"task": "check", "overrides": c.overrides}) for group, c in first.items()
        ]
        for _ in track(
            range(len(first)),
            "checking the cells ...",
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ):
            got = None
            while got is None:
                interruption.check()
                pool.fill(jobs)
                got = pool.answer(_REFRESH)
            job, answer = got
            if answer["ok"]:
                found[job.name] = answer["config"]
            else:
                wrong[job.name] = answer["error"]
        if wrong:
            group = next(name for name in first if name in wrong)
            others = f" (and {len(wrong) - 1} other kinds of cells)" if len(wrong) > 1 else ""
            raise ConfigError(f"cell {first[group].name}{others}: {wrong[group]}")
        self.environment = pool.environment
        for cell in self.cells:
            seed = {SEED: cell.seed} if SEED in cell.axes else {}
            self._configs[cell.name] = {**found[cell.group], **seed}
        refuse_other_runs(self.folder, self.cells, self._configs)

    def _run(self, pool: Pool, waiting: list[Cell]) -> None:
        cells = {cell.name: cell for cell in waiting}
        jobs = [
            Job(name, {"task": "run", "config": config, "folder": str(self.folder / name)})
            for name, config in self._configs.items()
            if name in cells
        ]
        workers = min(self.workers, len(jobs))
        with Display(self.console, len(jobs), workers, self.folder) as display:

            def begin(job: Job) -> None:
                config = self._configs[job.name]
                prepare(self.folder, cells[job.name], config)
                display.begins(cells[job.name], config["rounds"])

            for _ in waiting:
                got = None
                while got is None:
                    interruption.check()
                    pool.fill(jobs, begin)
                    display.refresh([cells[job.name] for job in jobs])
                    got = pool.answer(_REFRESH)
                job, answer = got
                reason = None if answer["ok"] else answer["error"]
                if reason is not None:
                    self.failed[job.name] = reason
                    write_failure(self.folder / job.name, reason)
                display.ends(cells[job.name], _reached(answer), reason)


def _with_one_worker(cell: Cell) -> Cell:
    """The cell with one Ray worker, unless the study asks for another number."""
    return replace(cell, overrides=merged([f"{_RAY_WORKERS}1"], cell.overrides))


def _ray_workers(cell: Cell) -> int:
    [number] = [o.removeprefix(_RAY_WORKERS) for o in cell.overrides if o.startswith(_RAY_WORKERS)]
    return int(number) if number.isdigit() and int(number) else cores()


def _reached(answer: Mapping[str, Any]) -> str:
    """What a finished cell reached: strategies without a global model have only the clients'."""
    result = answer.get("result", {})
    for key, words in (("accuracy", "accuracy"), ("client_accuracy_mean", "clients' accuracy")):
        if result.get(key) is not None:
            return f"{words} {result[key]:.4f}"
    return "-"


def write_study(
    folder: Path,
    name: str,
    study: Study,
    cells: Sequence[Cell],
    overrides: Sequence[str],
    environment: Mapping[str, Any],
) -> None:
    """``study.json``: all that the study says, its cells, and the versions that ran it."""
    write_json(
        folder / STUDY,
        {
            "name": name,
            "study": study.model_dump(mode="json"),
            "overrides": list(overrides),
            "cells": [{"folder": c.name, "axes": c.axes, "main": c.main} for c in cells],
            "environment": dict(environment),
        },
    )
