"""Finished runs as a table needs them, read without torch, Flower or pandas."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fedwsa.config.identity import described
from fedwsa.runfolder.files import whole_lines, write_text

CELL, FAILED, STUDY = "cell.json", "failed.json", "study.json"
_LISTS = {"cohort", "dropped", "late", "failed", "rejected", "failed_evaluation"}  # of clients


@dataclass
class Run:
    """A run folder.

    Attributes
    ----------
    folder : Path
        Where it lies.
    seed : int
        Its seed.
    axes : dict of str to str
        What sets it apart from the others, the seed not among them.
    same : str
        Equal for runs that differ in the seed alone.
    result : dict
        ``result.json``; empty for one that failed.
    failed : str or None
        Why it failed.
    """

    folder: Path
    seed: int
    axes: dict[str, str]
    same: str
    result: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None

    @cached_property
    def history(self) -> dict[str, list[str]]:
        """Columns of ``history.csv`` as text; none if the run left none."""
        return read_columns(self.folder / "history.csv")

    def column(self, key: str) -> list[float | None]:
        """A column of the history, a number a round; None where there is none."""
        return numbers(self.folder / "history.csv", self.history.get(key, []))

    def require_history(self) -> None:
        """Read it, so that a damaged one is found at once.

        Raises
        ------
        Unusable
            If it is damaged.
        """
        for key in self.history.keys() - _LISTS:
            self.column(key)

    @property
    def cohorts(self) -> list[str]:
        """Who was asked to train, in each round."""
        return self.history.get("cohort", [])

    def shares_cohorts(self, other: Run) -> bool:
        """Whether the same were asked, in all rounds that both have: one may have ended early."""
        return all(a == b for a, b in zip(self.cohorts, other.cohorts, strict=False))

    @cached_property
    def partition(self) -> str | None:
        """Hash of the partition."""
        try:
            text = (self.folder / "partition.json").read_bytes()
        except OSError:
            return None
        found = re.search(rb'"hash":\s*"([0-9a-f]+)"', text)
        return found[1].decode() if found else None


class Unusable(ValueError):
    """A folder that is no finished run of this version; the message says why."""


def read_config(folder: Path) -> dict[str, Any]:
    """``config.yaml`` of a run folder.

    Raises
    ------
    Unusable
        If there is none, or only a part.
    """
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        config = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text).get_single_data()
    except FileNotFoundError:
        raise Unusable("it has no config.yaml") from None
    except (OSError, ValueError, yaml.YAMLError):
        raise Unusable("its config.yaml cannot be read") from None
    if not isinstance(config, dict) or "seed" not in config:
        raise Unusable("its config.yaml is not that of a run")
    return config


def fingerprint(config: Mapping[str, Any], *without: str) -> str:
    """Hash of what a run is, without some keys; the same for the same run on another machine."""
    values = {key: v for key, v in described(config).items() if key not in without}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def cell_values(
    axes: Mapping[str, str], overrides: Sequence[str], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``cell.json`` says of a run: its place among others, and which run it is."""
    return {
        "axes": dict(axes),
        "overrides": list(overrides),
        "hash": fingerprint(config),
        "hash_but_seed": fingerprint(config, "seed"),
    }


def read_columns(file: Path) -> dict[str, list[str]]:
    """A CSV of a run folder by column, as text; no column if there is no such file.

    Raises
    ------
    Unusable
        If it cannot be read, or a row has not as many cells as there are columns.
    """
    try:
        head, *rows = list(csv.reader(io.StringIO(whole_lines(file), newline=""))) or [[]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error):
        raise Unusable(f"its {file.name} cannot be read") from None
    for i, row in enumerate(rows):
        if len(row) != len(head):
            raise Unusable(f"its {file.name} is damaged in line {i + 2}")
    return {key: [row[i] for row in rows] for i, key in enumerate(head)}


def numbers(file: Path, column: Sequence[str]) -> list[float | None]:
    """Cells as numbers; None for empty ones.

    Raises
    ------
    Unusable
        If one is none; names the file.
    """
    try:
        return [float(text) if text else None for text in column]
    except ValueError as error:
        raise Unusable(f"its {file.name} is damaged: {error}") from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises
    ------
    Unusable
        If it cannot be read as one.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unusable(f"it has no {file.name}") from None
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise Unusable(f"its {file.name} cannot be read")
    return values


def read_result(folder: Path) -> dict[str, Any]:
    """``result.json`` of a run that is finished.

    Raises
    ------
    Unusable
        If it is not, or another version made it.
    """
    if not (folder / "result.json").exists():
        hint = f"; fedwsa resume={shlex.quote(str(folder))} goes on"
        saved = any((folder / "checkpoints").glob("round-*"))
        raise Unusable("the run is not finished" + hint * saved)
    result = read_json(folder / "result.json")
    if missing := [key for key in ("accuracy", "seed", "rounds", "algorithm") if key not in result]:
        raise Unusable(f"its result.json has no {missing[0]}: another version of fedwsa made it")
    return result


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a file in one step."""
    write_text(file, json.dumps(values, indent=2) + "\n")


def write_failure(folder: Path, reason: str) -> None:
    """Say in a run folder why the run failed."""
    write_json(folder / FAILED, {"reason": reason})
