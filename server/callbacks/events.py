"""``events.jsonl``: everything that went wrong with a client or a round, a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedwsa.runfolder.files import Lines, whole_lines
from server.record import RoundRecord


class Events:
    """Writes each event at once, so that those of a run that dies are there.

    Keys: ``round``; ``stage``, train or evaluate; ``client``, null for the round as a whole;
    ``kind``, of a client ``failed`` (it said so), ``missing`` (no answer) or ``rejected`` (by the
    guard), of a round ``repeated``, ``skipped`` or ``stopped``; ``reason``.

    Parameters
    ----------
    folder
        Of the run.
    begun
        The rounds that are over, of a run that is resumed; events of later ones go.
    """

    def __init__(self, folder: Path, begun: int = 0) -> None:
        self._lines = Lines(folder / "events.jsonl")
        self._kept = _of_rounds(self._lines.file, begun) if begun else None
        if not begun:
            self._lines.begin()

    def on_event(self, event: Mapping[str, object]) -> None:
        """Write an event."""
        self._add([json.dumps(event) + "\n"])

    def on_round(self, record: RoundRecord) -> None:
        """All is written already; of a run that is resumed, later rounds go."""
        self._add([])

    def on_end(self) -> None:
        """Close the file."""
        self._lines.close()

    def _add(self, lines: list[str]) -> None:
        if self._kept is None:
            self._lines.add(lines)
        else:  # what was there stays until something takes its place
            kept, self._kept = self._kept, None
            self._lines.begin([*kept, *lines])


def _of_rounds(file: Path, begun: int) -> list[str]:
    """The lines of rounds that are over; none where there is no such file."""
    kept = []
    for line in whole_lines(file).splitlines(keepends=True) if file.exists() else []:
        try:
            if json.loads(line)["round"] <= begun:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept
