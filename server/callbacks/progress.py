"""What a person sees while a run goes on."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from server.record import RoundRecord


class ProgressDisplay:
    """A live bar on a terminal; elsewhere a plain line per round.

    Parameters
    ----------
    label
        The algorithm.
    rounds
        How many there will be.
    console
        Where to write.
    """

    def __init__(self, label: str, rounds: int, console: Console) -> None:
        self._label, self._rounds, self._console = label, rounds, console
        self._facts = ""
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[clients]}"),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(
            label, total=rounds, facts="starting the clients ...", clients=""
        )
        self._progress.start()
        if not console.is_terminal:
            self._line("starting the clients ...")

    def on_progress(self, done: int, total: int) -> None:
        """Show how many clients of the round have answered."""
        self._progress.update(self._task, clients=f"clients {done}/{total}" if done < total else "")

    def on_round(self, record: RoundRecord) -> None:
        """Show accuracy, loss and seconds."""
        if record.score is not None:
            self._facts = f"accuracy {record.score.accuracy:.4f}  loss {record.score.loss:.4f}"
        elif record.clients is not None:  # there may be no global model
            self._facts = f"clients' accuracy {record.clients.mean:.4f}"
        facts = f"{self._facts}  {sum(record.seconds.values()):.1f} s/round"
        if missing := len(record.cohort) - len(record.answers) - len(record.failed):
            facts += f"  {missing} of {len(record.cohort)} clients gave no answer in time"
        if record.failed:
            facts += f"  {len(record.failed)} of {len(record.cohort)} clients failed"
        self._progress.update(self._task, completed=record.round, facts=facts)
        if not self._console.is_terminal:
            self._line(f"round {record.round:>3}/{self._rounds}  {facts}")

    def on_end(self) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()

    def _line(self, text: str) -> None:
        self._console.print(f"{self._label}  {text}", highlight=False, soft_wrap=True)
