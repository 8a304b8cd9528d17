"""The command ``fedwsa-plot``: pictures of runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.commands.table import warn
from experiments.reports.tables.build import Request, Row, build
from experiments.reports.tables.collect import collect
from experiments.reports.tables.kept import KeptRun
from fedwsa.command_line import Parser, in_one_line
from fedwsa.config.component import ConfigError
from fedwsa.data.partition_files import read_described
from fedwsa.runfolder.read import Unusable

_EXAMPLES = """\
examples:
  fedwsa-plot runs/studies/smoke
  fedwsa-plot runs/2026-*/*-sweep --out figures
  fedwsa-plot runs/studies/mine --panels setting,partition --quantity accuracy,loss

Writes, as PNG and SVG in the size of a paper's column or page:
  accuracy     over rounds, a line per group of runs that differ in the seed alone, with a band of
               95 % over three or more seeds (of --quantity: accuracy, loss, clients)
  sizes        accuracy of each size's model over rounds, a panel per size
  client-accuracies  how accuracy on the hold-outs is spread over the clients of all seeds: box
               of the quartiles, whiskers from 5 to 95 %, diamond at the mean
  partition    who holds how much of which class, at the first seed
  scopes       of runs with WSA: σ of each layer over rounds, fused and of the average
Axes with panels of their own are chosen so that few lines stand in each, unless --panels says.
"""


def _parser() -> Parser:
    parser = Parser(
        prog="fedwsa-plot",
        description="Draw finished runs.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="as for fedwsa-table")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: figures in the first of RUNS"
    )
    parser.add_argument(
        "--panels", metavar="AXIS[,AXIS]", help="axes with a panel per label; none: all in one"
    )
    parser.add_argument(
        "--quantity", default="accuracy", metavar="NAME[,NAME]", help="accuracy, loss, clients"
    )
    return parser


def plot(arguments: Sequence[str], console: Console) -> None:
    """Run the command.

    Raises
    ------
    ConfigError
        If there are no runs, an axis is unknown, or nothing can be written.
    """
    given = _parser().parse_args(arguments)
    collection = collect(given.runs)
    warn(collection, "fedwsa-plot")
    if any(isinstance(run, KeptRun) for run in collection.runs):
        raise ConfigError("a file of kept runs has no rounds, and nothing to draw")
    table = build(collection.runs, Request())
    rows = [row for row in table.rows if row.runs]
    if not rows:
        raise ConfigError("no run is left to draw")
    # Only now: a wrong call is answered without matplotlib's second.
    from experiments.reports.figures import draw, style

    names = given.quantity.split(",")
    for quantity in names:
        if quantity not in draw.QUANTITIES:
            raise ConfigError(f"--quantity {quantity}: must be one of {', '.join(draw.QUANTITIES)}")
    axes = _panels(given.panels, table.axes, style.panel_axes([row.axes for row in rows]))
    out = given.out or _beside(given.runs[0])
    written: list[Path] = []
    with draw.plt.rc_context(style.STYLE):
        try:
            out.mkdir(parents=True, exist_ok=True)
            for quantity in names:
                if (figure := draw.curves(rows, axes, draw.QUANTITIES[quantity])) is not None:
                    written += style.save(figure, out / quantity)
            if (figure := draw.by_size(rows)) is not None:
                written += style.save(figure, out / "sizes")
            if (figure := draw.clients(rows, axes)) is not None:
                written += style.save(figure, out / "client-accuracies")
            for title, groups in draw.split(rows, axes).items():
                if (figure := draw.scopes(groups)) is not None:
                    suffix = re.sub(r"[^\w.+-]+", "-", title)
                    file = f"scopes-{suffix}" if suffix else "scopes"
                    written += style.save(figure, out / file)
            written += _partitions(rows, out)
        except OSError as error:
            raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from None
    if not written:
        raise ConfigError(f"no run has {', '.join(names)}: there is nothing to draw")
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)


def _partitions(rows: Sequence[Row], out: Path) -> list[Path]:
    """Who holds what: a picture for each partition of the rows, at their first seed."""
    from experiments.reports.partition_pictures import plot_labels

    first = {row.runs[0].partition: row.runs[0].folder for row in reversed(rows)}
    first.pop(None, None)
    files = []
    for number, folder in enumerate(reversed(first.values())):
        try:
            values = read_described(folder / "partition.json")
        except Unusable as error:
            print(
                f"fedwsa-plot: {folder} has no picture of its partition: {error}", file=sys.stderr
            )
            continue
        if "label_counts" not in values:  # of a deployment, where nobody knows them
            continue
        name = f"partition-{values['name']}" + (f"-{number}" if len(first) > 1 else "")
        for suffix in ("png", "svg"):
            files.append(out / f"{name}.{suffix}")
            plot_labels(values, files[-1])
    return files


def _panels(text: str | None, known: Sequence[str], chosen: list[str]) -> list[str]:
    if text is None:
        return chosen
    axes = [] if text == "none" else text.split(",")
    for axis in axes:
        if axis not in known:
            allowed = ", ".join(known) or "none"
            raise ConfigError(f"--panels {axis}: there is no such axis; axes: {allowed}")
    return axes


def _beside(runs: str) -> Path:
    """Where pictures go unless said: in the folder that was named, else here."""
    return Path(runs) / "figures" if Path(runs).is_dir() else Path("figures")


def main() -> None:
    """Entry point of ``fedwsa-plot``: every error ends in one line."""
    with in_one_line("fedwsa-plot"):
        plot(sys.argv[1:], Console())


if __name__ == "__main__":
    main()
