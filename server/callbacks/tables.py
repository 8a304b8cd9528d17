"""The tables of a run folder, written row by row, so that a run that dies leaves its past."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedwsa.config.component import ConfigError
from fedwsa.runfolder.columns import history_columns
from fedwsa.runfolder.files import Lines, whole_lines
from fedwsa.wire import messages
from fedwsa.wire.names import ACCURACY, LOSS, NUM_EXAMPLES
from server.callbacks.facts import facts
from server.record import RoundRecord

Row = Mapping[str, Any]


class _Table:
    """A CSV file that is on disk after every round; the first column is the round.

    Parameters
    ----------
    columns
        Its head. What rows bring besides is added to it.
    begun
        The rounds that are in it already, of a run that is resumed. What stands there of later
        ones goes when the first round of this run takes its place, and not before.
    """

    def __init__(self, file: Path, columns: Sequence[str], begun: int = 0) -> None:
        self._lines, self._columns = Lines(file), list(columns)
        self._kept: list[Row] | None = None
        if begun:
            head, self._kept = _rows(file, begun)
            self._columns = list(dict.fromkeys([*head, *columns]))
        else:
            self._begin([])

    def add(self, rows: Sequence[Row]) -> None:
        """Add the rows of a round, if it has any."""
        new = sorted({key for row in rows for key in row} - set(self._columns))
        self._columns += new
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self._begin([*kept, *rows])
        elif new:
            self._begin([*_rows(self._lines.file)[1], *rows])
        elif rows:
            self._lines.add(map(self._line, rows))

    def close(self) -> None:
        self._lines.close()

    def _begin(self, rows: Sequence[Row]) -> None:
        head = {column: column for column in self._columns}
        self._lines.begin(map(self._line, [head, *rows]))

    def _line(self, row: Row) -> str:
        # repr gives the shortest digits that read back to the same float.
        cells = (row.get(column) for column in self._columns)
        line = io.StringIO()
        writer = csv.writer(line, lineterminator="\n")
        writer.writerow([repr(v) if isinstance(v, float) else v for v in cells])
        return line.getvalue()


def require_history(folder: Path, begun: int) -> None:
    """Refuse to go on with a run whose history lacks rounds that are over.

    Raises
    ------
    ConfigError
        Names the file.
    """
    file = folder / "history.csv"
    rows = _rows(file, begun)[1] if file.exists() else []
    if [int(row["round"]) for row in rows] != list(range(1, begun + 1)):
        raise _damaged(file, begun)


def validation_accuracies(folder: Path, begun: int) -> list[tuple[int, float]]:
    """Round and accuracy on the validation split, of those rounds up to ``begun`` that have one."""
    file = folder / "history.csv"
    if not begun or not file.exists():
        return []
    rows = [(int(r["round"]), r.get("validation_accuracy")) for r in _rows(file, begun)[1]]
    return [(number, float(text)) for number, text in rows if text]


def _rows(file: Path, begun: int | None = None) -> tuple[list[str], list[Row]]:
    """The head, and the rows that are whole; of a run that is resumed, up to round ``begun``.

    Raises
    ------
    ConfigError
        If there is no such file, or it is no such table.
    """
    try:
        head, *rows = list(csv.reader(io.StringIO(whole_lines(file), newline=""))) or [[]]
        whole = [dict(zip(head, row, strict=True)) for row in rows if len(row) == len(head)]
        return head, [row for row in whole if begun is None or int(row["round"]) <= begun]
    except FileNotFoundError:
        raise ConfigError(
            f"resume: {file} is gone, and with it the {begun} rounds that are over; "
            "run it again from the start"
        ) from None
    except (OSError, ValueError, KeyError, csv.Error):
        raise _damaged(file, begun) from None


def _damaged(file: Path, begun: int | None) -> ConfigError:
    return ConfigError(
        f"resume: {file} lacks some of the {begun} rounds that are over, or is damaged; "
        "run it again from the start"
    )


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
    aimed_at
        Whether an attack wants certain answers.
    paced
        Whether answers may be late.
    """

    def __init__(
        self,
        folder: Path,
        validates: bool = False,
        begun: int = 0,
        private: bool = False,
        aimed_at: bool = False,
        paced: bool = False,
    ) -> None:
        self._columns = history_columns(
            validates=validates, private=private, aimed_at=aimed_at, paced=paced
        )
        self._history = _Table(folder / "history.csv", self._columns, begun)
        columns = ["round", "train", "aggregate", "evaluate"]
        self._timing = _Table(folder / "timing.csv", columns, begun)

    def on_round(self, record: RoundRecord) -> None:
        """Write both rows."""
        known = facts(record)
        cells = {column: known[column] for column in self._columns}
        joined = {k: " ".join(map(str, c)) if isinstance(c, list) else c for k, c in cells.items()}
        self._history.add([joined])
        seconds = {k: round(record.seconds[k], 4) for k in ("train", "aggregate", "evaluate")}
        self._timing.add([{"round": record.round, **seconds}])

    def on_end(self) -> None:
        """Close the files."""
        self._history.close()
        self._timing.close()


class Scopes:
    """``scopes.csv``: per round and layer the fused scope, that of the average, and the KL."""

    def __init__(self, folder: Path, begun: int = 0) -> None:
        self._columns = ["layer", "fused_mean", "fused_std"]
        self._columns += ["averaged_mean", "averaged_std", "client_kl"]
        self._table = _Table(folder / "scopes.csv", ["round", *self._columns], begun)

    def on_round(self, record: RoundRecord) -> None:
        """Write a row per layer."""
        report = record.scopes
        if report is None:
            self._table.add([])
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
        named = (dict(zip(self._columns, row, strict=True)) for row in rows)
        self._table.add([{"round": record.round, **row} for row in named])

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
        rows = []
        for size, score in record.sizes.items():
            found = {"accuracy": score.accuracy, "loss": score.loss, "clients": cohort[size]}
            rows.append({"round": record.round, "size": size, **found})
        self._table.add(rows)

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
        keys = (ACCURACY, LOSS, NUM_EXAMPLES)
        rows = []
        for client, metrics in sorted(record.evaluations.items()):
            accuracy, loss, examples = (messages.number(metrics, key) for key in keys)
            if examples > 0:
                found = {"accuracy": accuracy, "loss": loss, "examples": int(examples)}
                rows.append({"round": record.round, "client": client, **found})
        self._table.add(rows)

    def on_end(self) -> None:
        """Close the file."""
        self._table.close()


class ClientTable:
    """``clients.csv``: what each client reported of its training, a row per client and round.

    Numbers have columns, lists are joined by spaces. A metric that comes later gets a column, empty
    in the rows before.
    """

    def __init__(self, folder: Path, begun: int = 0) -> None:
        self._table = _Table(folder / "clients.csv", _WHOSE, begun)

    def on_round(self, record: RoundRecord) -> None:
        """Write a row per client."""
        rows = []
        for client, metrics in sorted(record.answers.items()):
            row: dict[str, Any] = {"round": record.round, "client": client}
            for key, cell in metrics.items():
                column = f"metrics.{key}" if key in _WHOSE else key
                row[column] = " ".join(map(repr, cell)) if isinstance(cell, list) else cell
            rows.append(row)
        self._table.add(rows)

    def on_end(self) -> None:
        """Close the file."""
        self._table.close()


_WHOSE = ("round", "client")
