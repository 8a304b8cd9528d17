"""From runs to the rows of a table: means over seeds, and differences to a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from experiments.reports.statistics import WILCOXON_FROM, Paired, holm, interval, paired
from experiments.reports.tables.metrics import SIZE_METRIC, Measure, measure
from experiments.reports.tables.runs import Run
from fedwsa.config.component import ConfigError

LEVEL = 0.05
TESTS = {"t": "paired t-test", "wilcoxon": "Wilcoxon signed-rank test"}


@dataclass(frozen=True)
class Request:
    """What a table is to show.

    Attributes
    ----------
    metrics : list of str
        Of :func:`~experiments.reports.tables.metrics.measure`; the first is compared.
    target : float or None
        The accuracy to reach, for metrics that count until then.
    baseline : dict of str to str
        What the others are compared with: a value of one axis or of several; empty: nothing.
    main : list of dict of str to str
        Cells named beforehand, each by a part of its axes; empty: all.
    test : str or None
        ``t`` or ``wilcoxon``: asked for, so that it must be possible; None: t where it is.
    planned : bool
        Whether the baseline is a study's, whose runs may be yet to come.
    """

    metrics: Sequence[str] = ("accuracy",)
    target: float | None = None
    baseline: Mapping[str, str] = field(default_factory=dict)
    main: Sequence[Mapping[str, str]] = ()
    test: str | None = None
    planned: bool = False

    @property
    def measures(self) -> list[Measure]:
        """The metrics as they are read."""
        return [measure(name) for name in self.metrics]


@dataclass
class Row:
    """Runs that differ in the seed alone.

    Attributes
    ----------
    axes : dict of str to str
        What sets them apart from other rows.
    runs : list of Run
        Those that finished, by seed.
    failed : list of Run
        The others.
    values : dict of str to list of float
        Of each metric, a number per run that has it.
    compared : Paired or None
        With the baseline.
    main : bool
        Whether the comparison was named beforehand, or none was.
    holm_t, holm_wilcoxon : float
        p-values, corrected for the main comparisons; NaN for others.
    """

    axes: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    compared: Paired | None = None
    main: bool = False
    holm_t: float = math.nan
    holm_wilcoxon: float = math.nan

    def mean(self, metric: str) -> tuple[float, float] | None:
        """Mean and half the 95 % interval; None without a value."""
        values = self.values[metric]
        return interval(values) if values else None

    def significant(self, test: str | None) -> bool:
        """Whether the corrected test says that there is a difference."""
        return (self.holm_wilcoxon if test == "wilcoxon" else self.holm_t) < LEVEL


@dataclass
class Table:
    """Rows, and what must be known to read them."""

    request: Request
    axes: list[str]
    rows: list[Row]
    notes: list[str]

    @property
    def compares(self) -> bool:
        """Whether there are differences."""
        return bool(self.request.baseline)

    @property
    def has_intervals(self) -> bool:
        """Whether a row has two seeds: else there is no interval to be shown."""
        return any(len(row.runs) > 1 for row in self.rows)

    @property
    def shows_wilcoxon(self) -> bool:
        """Whether a row has enough pairs for it."""
        return any(r.compared and r.compared.pairs >= WILCOXON_FROM for r in self.rows)


def build(runs: Sequence[Run], request: Request) -> Table:
    """Make a table.

    Raises
    ------
    ConfigError
        If the request does not fit the runs.
    """
    axes = list(runs[0].axes) if runs else []
    rows = _rows(runs)
    for row in rows:
        for name, how in zip(request.metrics, request.measures, strict=True):
            if how.to_target and request.target is None:
                raise ConfigError(f"--metric {name}: needs --target, the accuracy to reach")
            read = [run.value(name, how.read, request.target) for run in row.runs]
            row.values[name] = [value for value in read if value is not None]
    for name in request.metrics:
        if name.startswith(SIZE_METRIC) and not any(row.values[name] for row in rows):
            sizes = sorted({size for row in rows for run in row.runs for size in run.sizes})
            there = f"; there are {', '.join(sizes)}" if sizes else ""
            raise ConfigError(f"--metric {name}: no run has such a size{there}")
    notes = [_cohorts(rows)] if any(row.runs for row in rows) else []
    left_out: list[str] = []
    if request.baseline:
        left_out = _compare(rows, request)
        notes += [*left_out, *_explained(rows, request)]
    _require(rows, request, left_out)
    if any(len(row.runs) < 2 for row in rows):
        notes.append("an interval and a test need at least two seeds")
    for row in rows:
        for run in row.failed:
            notes.append(f"failed: {_name(row.axes)} seed={run.seed}: {run.failed}")
    return Table(request, axes, rows, notes)


def _rows(runs: Iterable[Run]) -> list[Row]:
    rows: dict[tuple[str, ...], Row] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        row = rows.setdefault(tuple(run.axes.values()), Row(run.axes))
        (row.failed if run.failed is not None else row.runs).append(run)
    return _in_order(rows)


def _in_order(rows: Mapping[tuple[str, ...], Row]) -> list[Row]:
    """Rows as their axes say, each label at its first place: those of a seed may be incomplete."""
    places = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    ordered = sorted(rows, key=lambda k: [p.index(v) for p, v in zip(places, k, strict=True)])
    return [rows[key] for key in ordered]


def _cohorts(rows: Sequence[Row]) -> str:
    runs = [run for row in rows for run in row.runs]
    longest = {run.seed: run for run in sorted(runs, key=lambda run: len(run.cohorts))}
    same = all(run.shares_cohorts(longest[run.seed]) for run in runs)
    return f"cohorts: {'the same in all' if same else 'differ between'} runs of a seed"


def _compare(rows: Sequence[Row], request: Request) -> list[str]:
    """Fill in the comparisons of the first metric; returns which rows have none, and why."""
    labels = {axis: {row.axes.get(axis) for row in rows} for axis in request.baseline}
    for axis, label in request.baseline.items():
        known = sorted(value for value in labels[axis] if value is not None)
        if request.planned:
            continue
        if not known:
            axes = ", ".join(rows[0].axes) if rows else "none"
            raise ConfigError(f"--baseline {axis}={label}: there is no axis {axis}; axes: {axes}")
        if label not in known:
            raise ConfigError(f"--baseline {axis}={label}: {axis} is one of {', '.join(known)}")
    by_axes = {tuple(row.axes.items()): row for row in rows}
    notes: list[str] = []
    for row in rows:
        base = by_axes.get(tuple({**row.axes, **request.baseline}.items()))
        if base is row:
            continue
        if base is None:
            notes.append(f"{_name(row.axes)}: there is no run of its baseline")
            continue
        row.compared = _pair(row, base, request, notes)
        row.main = row.compared is not None and (
            not request.main or any(_matches(row.axes, cell) for cell in request.main)
        )
    family = [row for row in rows if row.main and row.compared]
    for name in ("t", "wilcoxon"):
        corrected = holm([getattr(row.compared, f"p_{name}") for row in family])
        for row, p in zip(family, corrected, strict=True):
            setattr(row, f"holm_{name}", p)
    return notes


def _explained(rows: Sequence[Row], request: Request) -> list[str]:
    """How comparisons are to be read."""
    family = [row for row in rows if row.main and row.compared]
    against = _name(request.baseline)
    whose = "named as main" if request.main else "in the table"
    notes = [
        f"Δ: difference to {against}, pairs of the same seed; p: two-sided "
        f"{TESTS['t']}, corrected (Holm) for {_counted(len(family), 'comparison')} {whose}"
        + ("; (p): of the others, not corrected" if len(family) < _compared(rows) else "")
    ]
    test = TESTS[request.test or "t"]
    notes.append(f"bold: the corrected {test} finds a difference at {LEVEL:g}")
    return notes


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _compared(rows: Sequence[Row]) -> int:
    return sum(row.compared is not None for row in rows)


def _pair(row: Row, base: Row, request: Request, notes: list[str]) -> Paired | None:
    """Compare two rows at the seeds that both have, if these are the same federations."""
    first, target = request.metrics[0], request.target
    how = request.measures[0].read
    others = {run.seed: run for run in base.runs}
    pairs = [(run, others[run.seed]) for run in row.runs if run.seed in others]
    for what, differ in (
        ("cohorts", [a.seed for a, b in pairs if not a.shares_cohorts(b)]),
        ("partitions", [a.seed for a, b in pairs if a.partition != b.partition]),
    ):
        if differ:
            seeds = ", ".join(map(str, differ))
            notes.append(
                f"{_name(row.axes)}: not compared: its {what} are not those of the baseline "
                f"(seed {seeds})"
            )
            return None
    read = [(a.value(first, how, target), b.value(first, how, target)) for a, b in pairs]
    both = [(a, b) for a, b in read if a is not None and b is not None]
    if not both:
        why = f"no pair has {request.metrics[0]}" if pairs else "no seed has finished in both"
        notes.append(f"{_name(row.axes)}: not compared: {why}")
        return None
    return paired(*zip(*both, strict=True))


def _matches(axes: Mapping[str, str], partial: Mapping[str, str]) -> bool:
    return all(axes.get(axis) == label for axis, label in partial.items() if axis != "seed")


def _require(rows: Sequence[Row], request: Request, left_out: Sequence[str]) -> None:
    """Refuse a test that was asked for where there is no comparison, or one has too few seeds."""
    if request.test is None:
        return
    if not request.baseline:
        raise ConfigError(f"--test {request.test}: needs --baseline AXIS=LABEL")
    if not _compared(rows):
        why = left_out[0] if left_out else "there is no other row"
        raise ConfigError(
            f"--test {request.test}: no row can be compared with {_name(request.baseline)}: {why}"
        )
    need = 2 if request.test == "t" else WILCOXON_FROM
    for row in rows:
        if row.main and row.compared and row.compared.pairs < need:
            raise ConfigError(
                f"--test {request.test}: the {TESTS[request.test]} needs at least {need} seeds; "
                f"{_name(row.axes)} has {row.compared.pairs}"
            )


def _name(axes: Mapping[str, str]) -> str:
    return " ".join(f"{axis}={label}" for axis, label in axes.items()) or "the run"
