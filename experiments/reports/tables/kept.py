"""Runs kept as one CSV: a row per run with all that a table may show, for when folders are gone."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.reports.tables.metrics import METRICS, SIZE_METRIC, measure
from experiments.reports.tables.runs import Read, Run
from fedwsa.config.component import ConfigError
from fedwsa.runfolder.files import write_text

_HEAD = "# fedwsa runs: "
_SAID = ("baseline", "main", "metric", "target")  # of the study: how its table is to be made
_FACTS = ("seed", "failed", "cohorts", "partition")


@dataclass
class KeptRun(Run):
    """A run of which the numbers are kept.

    Attributes
    ----------
    values : dict of str to float
        By the names of metrics.
    told : dict of str to str
        Hashes of its cohorts and its partition.
    """

    values: dict[str, float] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)

    def value(self, name: str, read: Read, target: float | None) -> float | None:
        """A metric of the run, if it had it.

        Raises
        ------
        ConfigError
            If it counts until a target is reached: rounds are not kept.
        """
        if measure(name).to_target:
            raise ConfigError(f"--metric {name}: a file of kept runs has no rounds")
        return self.values.get(name)

    @property
    def cohorts(self) -> list[str]:
        """One hash of all cohorts."""
        return [self.told["cohorts"]]

    @property
    def partition(self) -> str | None:
        """Hash of the partition."""
        return self.told["partition"] or None


def keep(runs: Sequence[Run], study: Mapping[str, Any], file: Path) -> None:
    """Write the numbers of runs, and what their study compares, to a CSV."""
    sizes = dict.fromkeys(f"{SIZE_METRIC}{size}" for run in runs for size in run.sizes)
    names = [*(name for name, how in METRICS.items() if not how.to_target), *sizes]
    axes = list(runs[0].axes) if runs else []
    out = io.StringIO()
    said = {"runs": len(runs)} | {key: study[key] for key in _SAID if key in study}
    out.write(f"{_HEAD}{json.dumps(said, sort_keys=True)}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*axes, *_FACTS, *names])
    for run in runs:
        cohorts = hashlib.sha256("\n".join(run.cohorts).encode()).hexdigest()[:16]
        facts = [run.seed, run.failed or "", cohorts, (run.partition or "")[:16]]
        done = run.failed is None
        values = [run.value(name, measure(name).read, None) if done else None for name in names]
        finite = [v if v is not None and math.isfinite(v) else None for v in values]
        writer.writerow([*(run.axes[axis] for axis in axes), *facts, *finite])
    write_text(file, out.getvalue())


def read_kept(file: Path) -> tuple[dict[str, Any], list[KeptRun]]:
    """What a study says, and its runs, as :func:`keep` has written them.

    Raises
    ------
    ConfigError
        If the file is none of these, has lost rows, or is damaged otherwise.
    """
    try:
        head, *lines = file.read_text(encoding="utf-8").splitlines()
        if not head.startswith(_HEAD):
            raise ValueError
        study = json.loads(head.removeprefix(_HEAD))
        rows = list(csv.DictReader(lines, strict=True))
        if not isinstance(study, dict) or study.pop("runs", None) != len(rows):
            raise ValueError
        runs = [_run(file, row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        hint = "fedwsa-table RUNS --keep FILE writes one"
        raise ConfigError(f"{file} is no file of kept runs; {hint}") from None
    return study, runs


def _run(file: Path, row: dict[str, str]) -> KeptRun:
    names = list(row)
    first = names.index(_FACTS[0])
    axes, metrics = names[:first], names[first + len(_FACTS) :]
    values = {name: float(row[name]) for name in metrics if row[name]}
    if not all(map(math.isfinite, values.values())) or None in row or None in row.values():
        raise ValueError
    told = {key: row[key] for key in ("cohorts", "partition")}
    own = {axis: row[axis] for axis in axes}
    same = json.dumps(own)
    failed = row["failed"] or None
    return KeptRun(file, int(row["seed"]), own, same, {}, failed, values, told)
