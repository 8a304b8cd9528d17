"""Finished runs as a table needs them, read without torch, Flower or pandas."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedwsa.config.identity import described
from fedwsa.runfolder.columns import CLIENT_LISTS
from fedwsa.runfolder.read import numbers, read_columns, read_json

Read = Callable[["Run", float | None], float | None]
"""(run, accuracy to reach) → a metric."""


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
        for key in self.history.keys() - set(CLIENT_LISTS):
            self.column(key)

    @cached_property
    def sizes(self) -> dict[str, dict[int, float]]:
        """Size → round → accuracy of its model, by their parameters, most first; or none."""
        file = self.folder / "sizes.csv"
        columns = read_columns(file)
        rounds, accuracies = (numbers(file, columns.get(k, [])) for k in ("round", "accuracy"))
        found: dict[str, dict[int, float]] = {}
        for size, number, accuracy in zip(columns.get("size", []), rounds, accuracies, strict=True):
            if number is not None and accuracy is not None:
                found.setdefault(size, {})[int(number)] = accuracy
        weights = self.known_sizes.get("parameters", {})
        return {s: found[s] for s in sorted(found, key=lambda s: -weights.get(s, 0))}

    @cached_property
    def known_sizes(self) -> dict[str, Any]:
        """What ``sizes.json`` says; nothing where all clients have one size."""
        file = self.folder / "sizes.json"
        return read_json(file) if file.exists() else {}

    def last_scopes(self, key: str) -> list[float]:
        """A column of ``scopes.csv`` in the last round, a number a layer; none without WSA."""
        file = self.folder / "scopes.csv"
        columns = read_columns(file)
        rounds, values = (numbers(file, columns.get(k, [])) for k in ("round", key))
        pairs = list(zip(rounds, values, strict=True))
        last = max((n for n, _ in pairs if n is not None), default=None)
        return [v for n, v in pairs if n == last and v is not None and math.isfinite(v)]

    @property
    def cohorts(self) -> list[str]:
        """Who was asked to train, in each round."""
        return self.history.get("cohort", [])

    def shares_cohorts(self, other: Run) -> bool:
        """Whether the same were asked, in all rounds that both have: one may have ended early."""
        return all(a == b for a, b in zip(self.cohorts, other.cohorts, strict=False))

    def value(self, name: str, read: Read, target: float | None) -> float | None:
        """What a metric of this name reads of the run; None if it does not have it."""
        return read(self, target)

    @cached_property
    def partition(self) -> str | None:
        """Hash of the partition."""
        try:
            text = (self.folder / "partition.json").read_bytes()
        except OSError:
            return None
        found = re.search(rb'"hash":\s*"([0-9a-f]+)"', text)
        return found[1].decode() if found else None


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
