"""The command ``fedwsa-table``: runs as a table, with intervals and paired tests."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.reports.tables.build import TESTS, Request, Table, build
from experiments.reports.tables.collect import Collection, collect
from experiments.reports.tables.formats import FORMATS, show
from experiments.reports.tables.kept import KeptRun, keep
from experiments.reports.tables.metrics import METRICS, measure, share_to_reach
from fedwsa.command_line import Parser, in_one_line
from fedwsa.config.component import ConfigError
from fedwsa.runfolder.files import write_text

_EXAMPLES = """\
examples:
  fedwsa-table runs/studies/smoke
  fedwsa-table runs/2026-*/*-sweep --baseline wsa=off --metric last5,client_worst10
  fedwsa-table runs/studies/mine --baseline strategy=fedavg,wsa=off --format latex --out t.tex
  fedwsa-table runs/studies/mine --metric rounds_to_target --target 0.6

RUNS are run folders, folders that hold them, folders of studies, or patterns of these. Runs that
differ in the seed alone are one row: mean ± 95 % interval over the seeds (Student's t). With
--baseline each row is compared with the row that differs from it only there, seed by seed: a
paired t-test, from 8 seeds on also Wilcoxon's signed-rank test, Holm's correction over the cells
that the study names as main (else over all), bold only where the corrected test finds a
difference at 0.05. Of a study, --baseline, --metric and --target are as its file says, unless
given here. Pairs must have the same cohorts and partition.
"""


def _parser() -> Parser:
    parser = Parser(
        prog="fedwsa-table",
        description="Show finished runs as a table.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS")
    parser.add_argument(
        "--metric",
        metavar="NAME[,NAME]",
        help=f"what to show, the first of them compared: {', '.join(METRICS)}, "
        "size_NAME of each size",
    )
    parser.add_argument("--target", type=float, help="accuracy for NAME_to_target, a share: 0.6")
    parser.add_argument(
        "--baseline", metavar="AXIS=LABEL[,...]", help="compare with these; none: do not compare"
    )
    parser.add_argument("--test", choices=TESTS, help="which test decides what is bold; default: t")
    parser.add_argument("--format", choices=FORMATS, help="default: for the terminal")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE.csv",
        help="also write all numbers of each run to a file that RUNS may name when they are gone",
    )
    return parser


def request_of(study: dict[str, Any], **given: Any) -> Request:
    """What to show: what is given here, else what the study says.

    Parameters
    ----------
    study
        Of a collection.
    **given
        ``metric``, ``target``, ``baseline``, ``test`` as on the command line; None: not given.

    Raises
    ------
    ConfigError
        If a metric is unknown, the target is no share, or the baseline cannot be read.
    """
    metrics = (given.get("metric") or study.get("metric") or "accuracy").split(",")
    for name in metrics:
        try:
            measure(name)
        except ValueError as error:
            raise ConfigError(f"--metric {name}: {error}") from None
    text, baseline = given.get("baseline"), dict(study.get("baseline", {}))
    if text is not None:
        pairs = [part.partition("=") for part in text.split(",")] if text != "none" else []
        if not all(axis and label for axis, _, label in pairs):
            raise ConfigError(f"--baseline {text}: must be AXIS=LABEL, as wsa=off")
        baseline = {axis: label for axis, _, label in pairs}
    target = given.get("target")
    if target is not None:
        try:
            share_to_reach(target)
        except ValueError as error:
            raise ConfigError(f"--target: {error} (got {target:g})") from None
    return Request(
        metrics,
        study.get("target") if target is None else target,
        baseline,
        [entry["cell"] for entry in study.get("main", [])],
        given.get("test"),
        planned=text is None,
    )


def warn(collection: Collection, command: str) -> None:
    """Name what is skipped on standard error."""
    for folder, why in collection.skipped:
        print(f"{command}: skipped {folder}: {why}", file=sys.stderr)
    if collection.missing:
        print(f"{command}: {collection.missing} cells have not run yet", file=sys.stderr)


def table(arguments: Sequence[str], console: Console) -> None:
    """Run the command.

    Raises
    ------
    ConfigError
        If there are no runs, or the request does not fit them.
    """
    given = _parser().parse_args(arguments)
    collection = collect(given.runs)
    warn(collection, "fedwsa-table")
    if not collection.runs:
        raise ConfigError("no run is left to show")
    built = _built(collection, given)
    if given.keep is not None:
        if any(isinstance(run, KeptRun) for run in collection.runs):
            raise ConfigError("--keep: these runs are kept already")
        try:
            keep(collection.runs, collection.study, given.keep)
        except OSError as error:
            raise ConfigError(f"--keep: cannot write {given.keep}: {error.strerror}") from None
    form = given.format or _by_suffix(given.out)
    if form is None:
        show(built, console)
        return
    text = FORMATS[form](built)
    if given.out is None:
        sys.stdout.write(text)
        return
    try:
        write_text(given.out, text)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {given.out}: {error.strerror}") from None


def _built(collection: Collection, given: argparse.Namespace) -> Table:
    """The table that is asked for."""
    options = {key: getattr(given, key) for key in ("metric", "target", "baseline", "test")}
    return build(collection.runs, request_of(collection.study, **options))


def made(arguments: Sequence[str]) -> str:
    """The text of a table; arguments as of the command, with a format.

    Raises
    ------
    ConfigError
        If there are no runs, or the request does not fit them.
    """
    given = _parser().parse_args(arguments)
    return FORMATS[given.format](_built(collect(given.runs), given))


def _by_suffix(file: Path | None) -> str | None:
    """The format that a file's name asks for."""
    if file is None:
        return None
    known = {".md": "md", ".tex": "latex", ".csv": "csv"}
    if file.suffix not in known:
        raise ConfigError(f"--out {file}: give --format, or a name that ends in {', '.join(known)}")
    return known[file.suffix]


def main() -> None:
    """Entry point of ``fedwsa-table``: every error ends in one line."""
    with in_one_line("fedwsa-table"):
        table(sys.argv[1:], Console())


if __name__ == "__main__":
    main()
