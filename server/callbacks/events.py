"""``events.jsonl``: everything that went wrong with a client or a round, a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from server.rounds import RoundRecord


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
        file = folder / "events.jsonl"
        kept = _of_rounds(file, begun) if begun and file.exists() else []
        # Opened for the length of the run, closed by on_end().
        self._file = file.open("w", encoding="utf-8")
        for line in kept:
            self._write(line)

    def on_event(self, event: Mapping[str, object]) -> None:
        """Write an event."""
        self._write(json.dumps(event))

    def on_round(self, record: RoundRecord) -> None:
        """All is written already."""

    def on_end(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()


def _of_rounds(file: Path, begun: int) -> list[str]:
    """The lines of rounds that are over; the last one may be cut off where a run was killed."""
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["round"] <= begun:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept
