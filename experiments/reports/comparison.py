"""The runs of a sweep side by side: a table and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments.commands.runs import read_history
from experiments.reports.figures import draw, style
from experiments.reports.pictures import plot_curves
from experiments.reports.tables.build import Request, Row, build
from experiments.reports.tables.collect import SEED, collect
from experiments.reports.tables.formats import show, to_csv
from experiments.reports.tables.runs import Run, cell_values
from fedwsa.runfolder.files import replacing, write_text
from fedwsa.runfolder.read import Unusable, read_config
from fedwsa.runfolder.write import CELL, write_json

_METRICS = ("accuracy", "last5", "loss", "client_mean", "client_worst10", "seconds")
_BESIDE_SIZES = ("client_mean", "client_worst10", "seconds")


@dataclass(frozen=True)
class SweptRun:
    """A run of a sweep.

    Attributes
    ----------
    overrides : list of str
        What composed it.
    folder : Path
        Its run folder; there is none for one that was refused.
    """

    overrides: Sequence[str]
    folder: Path

    @property
    def values(self) -> dict[str, str]:
        """The overrides by key."""
        pairs = (override.partition("=") for override in self.overrides)
        return {key.lstrip("+~"): value for key, _, value in pairs}


def compare(runs: Sequence[SweptRun], folder: Path) -> None:
    """Show the runs of a sweep side by side and save the comparison to ``folder``.

    Each gets a ``cell.json`` that says what sets it apart, so that ``fedwsa-table`` and
    ``fedwsa-plot`` show the folder in the same words.
    """
    begun, refused = [], []
    for run, axes in zip(runs, _axes(runs), strict=True):
        try:
            config = read_config(run.folder)
        except Unusable:
            seed = int(axes.pop(SEED, 0))
            refused.append(Run(run.folder, seed, axes, "", failed="refused; the reason is above"))
            continue
        write_json(run.folder / CELL, cell_values(axes, run.overrides, config))
        begun.append(str(run.folder))
    found = collect(begun).runs
    console = Console()
    done = [run for run in found if run.failed is None]
    sizes = _sizes(done)
    metrics = [*(f"size_{size}" for size in sizes), *_BESIDE_SIZES] if sizes else _METRICS
    table = build([*found, *refused], Request(metrics))
    whose = "Models of each size" if sizes else "Global model"
    show(table, console, f"{whose}; mean ± 95 % interval over seeds")
    if done:
        write_text(folder / "comparison.csv", to_csv(table))
        if sizes:
            _show_sizes(sizes, done, console)
            _draw_sizes(table.rows, folder / "comparison.png")
        else:
            seeds = len({run.seed for run in done}) > 1
            histories = [(_label(run, seeds), read_history(run.folder)) for run in done]
            plot_curves(histories, folder / "comparison.png")
        console.print(f"saved to {folder}/: comparison.csv, comparison.png, each run's folder")


def _sizes(runs: Sequence[Run]) -> list[str]:
    """The sizes that the runs have, the largest first; none if one has none."""
    if not runs or not all(run.sizes for run in runs):
        return []
    return list(dict.fromkeys(size for run in runs for size in run.sizes))


def _show_sizes(sizes: Sequence[str], runs: Sequence[Run], console: Console) -> None:
    """What a client of each size trains and sends, where that is the same in all runs."""
    known = runs[0].known_sizes
    if "bytes" not in known or any(
        run.known_sizes.get(of) != known[of] for run in runs for of in ("parameters", "bytes")
    ):
        return
    counts = Counter(known["clients"])
    for size in sizes:
        console.print(
            f"size {size}: {known['parameters'][size]:,} parameters, "
            f"{known['bytes'][size] / 1e3:,.0f} kB each way and round; {counts[size]} clients",
            highlight=False,
        )


def _draw_sizes(rows: Sequence[Row], file: Path) -> None:
    """The accuracies of the sizes over rounds."""
    with draw.plt.rc_context(style.STYLE):
        figure = draw.by_size([row for row in rows if row.runs])
        assert figure is not None
        with replacing(file) as part:
            figure.savefig(part, dpi=200)
        draw.plt.close(figure)


def _axes(runs: Sequence[SweptRun]) -> list[dict[str, str]]:
    """The overrides that not all runs share; of a run alone, none."""
    values = [run.values for run in runs]
    keys = [key for key in values[0] if len({v.get(key) for v in values}) > 1]
    return [{key: v[key] for key in keys} for v in values]


def _label(run: Run, seeds: bool) -> str:
    """A line's name in the picture: the algorithm, and what else sets the run apart."""
    named = ("wsa", "strategy")  # by the algorithm
    parts = [f"{axis}={label}" for axis, label in run.axes.items() if axis not in named]
    return " ".join([run.result["algorithm"], *parts, *([f"seed={run.seed}"] if seeds else [])])
