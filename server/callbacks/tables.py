"""The tables of a run folder, written row by row, so that a run that dies leaves its past."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedwsa import messages
from fedwsa.components import ConfigError
from server.callbacks.facts import facts
from server.rounds import RoundRecord


class _Table:
    """A CSV file that is on disk after every row; the first column is the round.

    Parameters
    ----------
    columns
        Its head.
    begun
        The rounds that are in it already, of a run that is resumed; what stands there of later
        ones goes.
    """

    def __init__(self, file: Path, columns: Sequence[str], begun: int = 0) -> None:
        kept = _rows(file, begun) if begun else []
        # Opened for the length of the run, closed by close().
        self._file = file.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self.write(columns)
        for row in kept:
            self.write(row)

    def write(self, row: Sequence[Any]) -> None:
        # repr gives the shortest digits that read back to the same float.
        self._writer.writerow([repr(v) if isinstance(v, float) else v for v in row])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def require_history(folder: Path, begun: int) -> None:
    """Refuse to go on with a run whose history lacks rounds that are over.

    Raises
    ------
    ConfigError
        Names the file.
    """
    file = folder / "history.csv"
    try:
        found = [int(row[0]) for row in _rows(file, begun)]
    except (ValueError, IndexError, OSError):
        found = []
    if found != list(range(1, begun + 1)):
        raise ConfigError(
            f"resume: {file} lacks some of the {begun} rounds that are over, or is damaged; "
            "run it again from the start"
        )


def validation_accuracies(folder: Path, begun: int) -> list[tuple[int, float]]:
    """Round and accuracy on the validation split, of those rounds up to ``begun`` that have one."""
    file = folder / "history.csv"
    if not begun or not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        rows = [(int(r["round"]), r.get("validation_accuracy")) for r in csv.DictReader(opened)]
    return [(number, float(text)) for number, text in rows if number <= begun and text]


def _rows(file: Path, begun: int) -> list[list[str]]:
    """The rows of rounds up to ``begun``; the last one may be cut off where a run was killed."""
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            head, *rows = list(csv.reader(opened)) or [[]]
    except FileNotFoundError:
        raise ConfigError(
            f"resume: {file} is gone, and with it the {begun} rounds that are over; "
            "run it again from the start"
        ) from None
    return [row for row in rows if len(row) == len(head) and int(row[0]) <= begun]


class History:
    """``history.csv`` (what must repeat) and ``timing.csv`` (what cannot).

    Parameters
    ----------
    folder
        Of the run.
    validates
        Whether there is a validation split.
    begun
        The rounds that are over, of a run that is resumed; so for the other tables.
    private
        Whether differential privacy has a price.
    """

    def __init__(
        self, folder: Path, validates: bool = False, begun: int = 0, private: bool = False
    ) -> None:
        self._columns = [
            "round",
            "accuracy",
            "loss",
            *(["validation_accuracy", "validation_loss"] if validates else []),
            "train_loss",
            "client_accuracy_mean",
            "client_accuracy_worst10",
            "client_accuracy_std",
            "client_accuracy_jain",
            *(["epsilon"] if private else []),
            "bytes_down",
            "bytes_up",
            "simulated_seconds",
            "flops_per_client",
            "dropped",
            "late",
            "failed",
            "rejected",
            "failed_evaluation",
            "cohort",
        ]
        self._history = _Table(folder / "history.csv", self._columns, begun)
        columns = ["round", "train", "aggregate", "evaluate"]
        self._timing = _Table(folder / "timing.csv", columns, begun)

    def on_round(self, record: RoundRecord) -> None:
        """Write both rows."""
        known = facts(record)
        cells = [known[column] for column in self._columns]
        self._history.write([" ".join(map(str, c)) if isinstance(c, list) else c for c in cells])
        seconds = [round(record.seconds[k], 4) for k in ("train", "aggregate", "evaluate")]
        self._timing.write([record.round, *seconds])

    def on_end(self) -> None:
        """Close the files."""
        self._history.close()
        self._timing.close()


class Scopes:
    """``scopes.csv``: per round and layer the fused scope, that of the average, and the KL."""

    def __init__(self, folder: Path, begun: int = 0) -> None:
        self._table = _Table(
            folder / "scopes.csv",
            [
                "round",
                "layer",
                "fused_mean",
                "fused_std",
                "averaged_mean",
                "averaged_std",
                "client_kl",
            ],
            begun,
        )

    def on_round(self, record: RoundRecord) -> None:
        """Write a row per layer."""
        report = record.scopes
        if report is None:
            return
        fused, averaged = report.fused, report.averaged
        rows = zip(
            fused.names,
            fused.mean.tolist(),
            fused.std.tolist(),
            averaged.mean.tolist(),
            averaged.std.tolist(),
            report.kl,
            strict=True,
        )
        for row in rows:
            self._table.write([record.round, *row])

    def on_end(self) -> None:
        """Close the file."""
        self._table.close()


class SizeTable:
    """``sizes.csv``: the model of each size on the global test set, a row per size and round.

    Parameters
    ----------
    folder
        Of the run.
    of_client
        The size of each client.
    """

    def __init__(self, folder: Path, of_client: Sequence[str], begun: int = 0) -> None:
        self._of_client = of_client
        columns = ["round", "size", "accuracy", "loss", "clients"]
        self._table = _Table(folder / "sizes.csv", columns, begun)

    def on_round(self, record: RoundRecord) -> None:
        """Write a row per size, with how many clients of the cohort have it."""
        cohort = Counter(self._of_client[client] for client in record.cohort)
        for size, score in record.sizes.items():
            row = [record.round, size, score.accuracy, score.loss, cohort[size]]
            self._table.write(row)

    def on_end(self) -> None:
        """Close the file."""
        self._table.close()


class ClientScoreTable:
    """``client_scores.csv``: the model on each client's hold-out, a row per client and round."""

    def __init__(self, folder: Path, begun: int = 0) -> None:
        columns = ["round", "client", "accuracy", "loss", "examples"]
        self._table = _Table(folder / "client_scores.csv", columns, begun)

    def on_round(self, record: RoundRecord) -> None:
        """Write a row per client that has a hold-out."""
        keys = (messages.ACCURACY, messages.LOSS, messages.NUM_EXAMPLES)
        for client, metrics in sorted(record.evaluations.items()):
            accuracy, loss, examples = (messages.number(metrics, key) for key in keys)
            if examples > 0:
                self._table.write([record.round, client, accuracy, loss, int(examples)])

    def on_end(self) -> None:
        """Close the file."""
        self._table.close()


class ClientTable:
    """``clients.csv``: what each client reported of its training, a row per client and round."""

    def __init__(self, folder: Path, begun: int = 0) -> None:
        self._file, self._begun = folder / "clients.csv", begun
        self._table: _Table | None = None
        self._columns: list[str] = []
        if begun:
            _rows(self._file, begun)  # is it there?
        else:
            self._file.touch()

    def on_round(self, record: RoundRecord) -> None:
        """Write a row per client; numbers have columns, lists are joined by spaces."""
        if not record.answers:
            return
        if self._table is None:
            self._columns = sorted({key for m in record.answers.values() for key in m})
            columns = ["round", "client", *self._columns]
            self._table = _Table(self._file, columns, self._begun)
        for client, metrics in sorted(record.answers.items()):
            cells = [metrics.get(key) for key in self._columns]
            joined = [" ".join(map(repr, c)) if isinstance(c, list) else c for c in cells]
            self._table.write([record.round, client, *joined])

    def on_end(self) -> None:
        """Close the file."""
        if self._table is not None:
            self._table.close()
