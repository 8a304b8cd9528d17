"""Tables and a picture of the learngene benchmark, from the results in its folder."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: works without a screen

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.reports.statistics import interval
from fedwsa.runfolder.files import replacing, write_text

BASELINE = "standard"


def summarise(folder: Path) -> str:
    """Write ``summary.md`` and ``grid.png``; returns the text."""
    results = pd.concat([pd.read_csv(f) for f in sorted(folder.glob("results-*.csv"))])
    costs = pd.concat([pd.read_csv(f) for f in sorted(folder.glob("costs-*.csv"))])
    parts = [_grid_means(results), _gains(results), _costs(costs)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(folder / "summary.md", text)
    _picture(results, folder / "grid.png")
    return text


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(values: NDArray[np.float64], sign: bool = False) -> str:
    mean, half = interval(100 * values)
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text if np.isnan(half) else f"{text} ± {half:.1f}"


def _after(epoch: int) -> str:
    return f"after {epoch} epoch" + ("" if epoch == 1 else "s")


def _grid_means(results: pd.DataFrame) -> str:
    """Mean accuracy over the grid, per method and epoch."""
    means = results.groupby(["method", "epoch", "seed"])["accuracy"].mean().reset_index()
    epochs = sorted(results["epoch"].unique())
    rows = []
    for method in results["method"].unique():
        own = means[means["method"] == method]
        cells = [_cell(own[own["epoch"] == e]["accuracy"].to_numpy()) for e in epochs]
        rows.append([method, *cells])
    seeds = results["seed"].nunique()
    head = f"Test accuracy in %, mean over the grid, ± 95 % interval over {seeds} seeds:\n\n"
    return head + _table(["method", *(_after(e) for e in epochs)], rows)


def _gains(results: pd.DataFrame) -> str:
    """What each method gains over the standard initialisation, per size and epoch."""
    if BASELINE not in set(results["method"]):
        return ""
    key = ["seed", "width", "depth", "epoch"]
    base = results[results["method"] == BASELINE].set_index(key)["accuracy"]
    others = [m for m in results["method"].unique() if m != BASELINE]
    tables = []
    for epoch in sorted(results["epoch"].unique()):
        rows = []
        for (width, depth), cell in results[results["epoch"] == epoch].groupby(["width", "depth"]):
            row = [f"{width:g} x {depth}"]
            for method in others:
                own = cell[cell["method"] == method].set_index(key)["accuracy"]
                gain = (own - base.reindex(own.index)).dropna().to_numpy()
                row.append(_cell(gain, sign=True) if len(gain) else "-")
            rows.append(row)
        title = f"Gain over the standard initialisation {_after(epoch)}, in points:\n\n"
        tables.append(title + _table(["width x depth", *others], rows))
    return "\n\n".join(tables)


def _costs(costs: pd.DataFrame) -> str:
    """Numbers stored and operations, means over the seeds."""
    rows = []
    power = 12 if costs["learn_flops"].max() >= 1e12 else 9
    for method, own in costs.groupby("method", sort=False):
        mean = own.mean(numeric_only=True)
        scaled = [
            f"{mean[k] / 10**power:.2f}" for k in ("teacher_flops", "learn_flops", "fit_flops")
        ]
        rows.append([str(method), f"{mean['numbers']:,.0f}", *scaled])
    title = f"What it takes to initialise all sizes of the grid (10^{power} operations):\n\n"
    return title + _table(["method", "numbers stored", "teacher", "learning", "fitting"], rows)


def _picture(results: pd.DataFrame, file: Path) -> None:
    """Accuracy over the epochs for each size: a panel per size, a line per method."""
    widths, depths = sorted(results["width"].unique()), sorted(results["depth"].unique())
    figure, grid = plt.subplots(
        len(depths),
        len(widths),
        figsize=(3.2 * len(widths), 2.6 * len(depths)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes_row, depth in zip(grid, depths, strict=True):
        for axes, width in zip(axes_row, widths, strict=True):
            cell = results[(results["width"] == width) & (results["depth"] == depth)]
            for method, own in cell.groupby("method", sort=False):
                mean = own.groupby("epoch")["accuracy"].mean()
                axes.plot(mean.index, 100 * mean.to_numpy(), marker="o", label=str(method))
            axes.set_title(f"width {width:g}, depth {depth}", fontsize=9)
            axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("epochs")
    for axes_row in grid:
        axes_row[0].set_ylabel("test accuracy, %")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    with replacing(file) as part:
        figure.savefig(part, dpi=120)
    plt.close(figure)
