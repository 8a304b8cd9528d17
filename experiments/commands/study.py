"""The command ``fedwsa-study``: run a study, or what is left of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.commands.table import request_of, warn
from experiments.reports.tables.build import build
from experiments.reports.tables.collect import collect
from experiments.reports.tables.formats import show
from experiments.studies.folder import kept_apart, state_of
from experiments.studies.runner import Runner, write_study
from experiments.studies.schema import Cell, expand, find, load, selected, shipped
from fedwsa.command_line import Parser, in_one_line
from fedwsa.config.component import ConfigError
from fedwsa.runfolder.read import Unusable, read_json
from fedwsa.runfolder.write import STUDY

_EXAMPLES = """\
examples:
  fedwsa-study smoke                        a tiny study, in half a minute
  fedwsa-study smoke --dry-run              what it would run; every cell is checked
  fedwsa-study my.yaml --workers 2          your own study, two cells at a time
  fedwsa-study my.yaml rounds=5             with an override for all cells
  fedwsa-study my.yaml --only seed=0,1 --only strategy=fedavg

Each cell is a run folder below the study's (runs/studies/NAME, or --folder). Called again, the
same command goes on: finished cells stay, interrupted and failed ones start again. Afterwards
fedwsa-table FOLDER and fedwsa-plot FOLDER show what came out. docs/studies.md explains the file.
"""


def _parser() -> Parser:
    names = ", ".join(shipped())
    parser = Parser(
        prog="fedwsa-study",
        description="Run a grid of simulations that a file names, skip what is finished, and show "
        "a table with intervals and paired tests.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("study", metavar="NAME|FILE.yaml", help=f"one that comes along: {names}")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for all cells"
    )
    parser.add_argument("--folder", type=Path, help="default: runs/studies/NAME")
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="cells at a time; default: one per core"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=LABEL[,LABEL]",
        help="run only these cells; may be given again for another axis",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all cells, list them, run and write nothing"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 (got {text!r})")
    return int(text)


def study(arguments: Sequence[str], console: Console) -> int:
    """Run the command; returns its exit code.

    Raises
    ------
    ConfigError
        If anything is wrong with the study; nothing has run then.
    """
    given = _parser().parse_intermixed_args(arguments)
    for override in given.overrides:
        if "=" not in override:
            raise ConfigError(f"{override}: is no override; they look like KEY=VALUE")
    file = find(given.study)
    plan = load(file)
    cells = expand(plan, given.overrides)
    chosen = selected(plan, cells, given.only)
    folder = given.folder or Path("runs") / "studies" / file.stem
    runner = Runner(chosen, folder, given.workers, console)
    if given.dry_run:
        runner.check()
        _list(chosen, folder, console)
        return 0
    with kept_apart(folder):
        _refuse_other_study(folder, file.stem)
        finished = len(chosen) - len(runner.unfinished())
        if finished:
            console.print(f"{finished} of {len(chosen)} cells are finished already")
        # Before the first cell runs, so that a study that is cut off can be tabulated.
        runner.run(
            lambda environment: write_study(
                folder, file.stem, plan, cells, given.overrides, environment
            )
        )
    _show(folder, console)
    for name, reason in runner.failed.items():
        print(f"fedwsa-study: {name}: {reason}", file=sys.stderr)
    return 1 if runner.failed else 0


def _refuse_other_study(folder: Path, name: str) -> None:
    try:
        other = read_json(folder / STUDY).get("name")
    except Unusable:
        return
    if other != name:
        raise ConfigError(f"{folder}: holds the study {other}; name another --folder")


def _list(cells: Sequence[Cell], folder: Path, console: Console) -> None:
    states = [state_of(folder / cell.name) for cell in cells]
    for cell, state in zip(cells, states, strict=True):
        mark = "  (main)" if cell.main else ""
        console.print(f"{state:<11}  {cell.name}{mark}", highlight=False, soft_wrap=True)
    left = len(cells) - states.count("finished")
    console.print(f"{len(cells)} cells, {left} to run, in {folder}", highlight=False)


def _show(folder: Path, console: Console) -> None:
    """The table that fedwsa-table shows of the folder."""
    collection = collect([str(folder)])
    warn(collection, "fedwsa-study")
    if collection.runs:
        show(build(collection.runs, request_of(collection.study)), console)
    console.print(f"the study is in {folder}", highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point of ``fedwsa-study``: every error ends in one line."""
    with in_one_line("fedwsa-study", "interrupted; the same command goes on with what is left"):
        sys.exit(study(sys.argv[1:], Console()))


if __name__ == "__main__":
    main()
