"""What a person sees while a learngene is learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedwsa.learngene.fit import Report


class Watcher:
    """Shows what is trained: a live bar on a terminal, else a line every tenth."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, name: str, steps: int) -> Report:
        """The report for a training of so many steps."""
        task = self._progress.add_task(name, total=steps, loss="")
        live, tenth = self._progress.console.is_terminal, max(1, steps // 10)

        def report(step: int, loss: float) -> None:
            self._progress.update(task, completed=step, loss=f"loss {loss:.3f}")
            if not live and step % tenth == 0:
                line = f"{name}: step {step}/{steps}, loss {loss:.3f}"
                self._progress.console.print(line, highlight=False, soft_wrap=True)

        return report


@contextmanager
def watching(console: Console) -> Iterator[Watcher]:
    """Progress bars while something is trained."""
    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        yield Watcher(progress)
