"""What a person sees while a study goes on."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from experiments.studies.schema import Cell
from fedwsa.runfolder.files import whole_lines


@dataclass
class Clock:
    """How long cells take, and so how long the rest will.

    Attributes
    ----------
    seconds : dict of str to list of float
        What finished cells took, by their group; cells of a group do the same work.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def finished(self, group: str, seconds: float) -> None:
        """Remember a cell."""
        self.seconds.setdefault(group, []).append(seconds)

    def left(
        self, waiting: Sequence[str], running: Sequence[tuple[str, float]], workers: int
    ) -> float | None:
        """Seconds until all is done; None before a cell has finished.

        Parameters
        ----------
        waiting
            The groups of cells that have not begun.
        running
            Groups of those that have, and since when, in seconds.
        workers
            How many cells run at a time.
        """
        known = [s for group in self.seconds.values() for s in group]
        if not known:
            return None
        parts = [max(0.0, self._expected(group, known) - spent) for group, spent in running]
        longest = max(parts, default=0.0)
        parts += [self._expected(group, known) for group in waiting]
        return max(longest, sum(parts) / max(1, workers))

    def _expected(self, group: str, known: list[float]) -> float:
        own = self.seconds.get(group, known)
        return sum(own) / len(own)


def duration(seconds: float) -> str:
    """Rounded to what matters: ``40 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class Display:
    """One live display on a terminal; elsewhere a line per finished cell.

    Parameters
    ----------
    console
        Where to write.
    total
        Cells that are to run.
    workers
        How many at a time.
    folder
        Of the study.
    """

    def __init__(self, console: Console, total: int, workers: int, folder: Path) -> None:
        self._console, self._total, self._workers, self._folder = console, total, workers, folder
        self._clock, self._done, self._failed = Clock(), 0, 0
        self._running: dict[str, tuple[Cell, int, float]] = {}
        self._waiting: list[Cell] = []
        self._bar = Progress(
            TextColumn("cells {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        self._task = self._bar.add_task("", total=total, facts="")
        # Drawn when we say so: Live's own thread would read files beside us.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def begins(self, cell: Cell, rounds: int) -> None:
        """A cell begins."""
        self._running[cell.name] = (cell, rounds, time.perf_counter())

    def ends(self, cell: Cell, reached: str, reason: str | None) -> None:
        """A cell has ended, well or (``reason``) not."""
        _, _, start = self._running.pop(cell.name)
        seconds = time.perf_counter() - start
        self._done += 1
        if reason is None:
            self._clock.finished(cell.group, seconds)
            text = reached
        else:
            self._failed += 1
            text = f"FAILED: {reason}"
        line = f"{self._done}/{self._total}  {cell.name}  {text}  {duration(seconds)}"
        left = "" if self._console.is_terminal or not (rest := self._left()) else f"  ({rest})"
        self._console.print(line + left, highlight=False, soft_wrap=True, markup=False)

    def refresh(self, waiting: Sequence[Cell]) -> None:
        """Draw what runs, with its round and accuracy."""
        self._waiting = list(waiting)
        if self._console.is_terminal:
            self._live.update(self._picture(), refresh=True)

    def _left(self) -> str:
        now = time.perf_counter()
        running = [(cell.group, now - start) for cell, _, start in self._running.values()]
        seconds = self._clock.left([c.group for c in self._waiting], running, self._workers)
        return "" if seconds is None else f"{duration(seconds)} left"

    def _picture(self) -> RenderableType:
        failed = f"{self._failed} failed  " if self._failed else ""
        self._bar.update(self._task, completed=self._done, facts=failed + self._left())
        table = Table.grid(padding=(0, 2))
        for cell, rounds, start in self._running.values():
            number, accuracy = progress_of(self._folder / cell.name)
            table.add_row(
                "  " + cell.name,
                f"round {number}/{rounds}",
                "" if accuracy is None else f"{accuracy:.4f}",
                duration(time.perf_counter() - start),
            )
        return Group(self._bar, table)


def progress_of(folder: Path) -> tuple[int, float | None]:
    """Rounds that a running cell has finished, and its accuracy when last evaluated."""
    try:
        rows = list(csv.DictReader(io.StringIO(whole_lines(folder / "history.csv"), newline="")))
    except (OSError, ValueError):
        return 0, None
    for key in ("accuracy", "client_accuracy_mean"):
        if seen := [row[key] for row in rows if row.get(key)]:
            return len(rows), float(seen[-1])
    return len(rows), None
