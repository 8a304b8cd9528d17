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
    """Write ``summary.md``, ``grid.png`` and ``operations.png``; returns the text."""
    results = pd.concat([pd.read_csv(f) for f in sorted(folder.glob("results-*.csv"))])
    costs = pd.concat([pd.read_csv(f) for f in sorted(folder.glob("costs-*.csv"))])
    parts = [_grid_means(results), _long(results), _gains(results), _costs(costs)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(folder / "summary.md", text)
    _picture(results, folder / "grid.png")
    _operations(results, costs, folder / "operations.png")
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


def _epochs(results: pd.DataFrame) -> list[int]:
    """After which epochs all methods are scored."""
    scored = [set(own["epoch"]) for _, own in results.groupby("method")]
    return sorted(set.intersection(*scored))


def _long(results: pd.DataFrame) -> str:
    """Each method after a few epochs against standard networks after many times as many."""
    means = results.groupby(["method", "epoch", "seed"])["accuracy"].mean()
    methods = [m for m in results["method"].unique() if m != BASELINE]
    if BASELINE not in set(results["method"]):
        return ""
    long = sorted(set(results[results["method"] == BASELINE]["epoch"]) - set(_epochs(results)))
    usual = [epoch for epoch in _epochs(results) if epoch]
    if not (long and usual and methods):
        return ""
    times = max(long) // max(usual)
    rows = []
    for epoch in usual:
        there = means[BASELINE, epoch * times]
        cells = [_cell(there.to_numpy())]
        for method in methods:
            own = means[method, epoch]
            cells.append(_cell((own - there.reindex(own.index)).dropna().to_numpy(), sign=True))
        rows.append([f"{epoch} against {epoch * times}", *cells])
    title = (
        f"After few epochs against standard networks after {times} times as many, mean over the "
        "grid, in points:\n\n"
    )
    return title + _table(["epochs", f"{BASELINE}, %", *methods], rows)


def _grid_means(results: pd.DataFrame) -> str:
    """Mean accuracy over the grid, per method and epoch."""
    means = results.groupby(["method", "epoch", "seed"])["accuracy"].mean().reset_index()
    epochs = _epochs(results)
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
    for epoch in _epochs(results):
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
        share = f"{100 * mean['numbers'] / mean['parameters']:.1f} %"
        rows.append([str(method), f"{mean['numbers']:,.0f}", share, *scaled])
    title = f"What it takes to initialise all sizes of the grid (10^{power} operations):\n\n"
    head = ["method", "numbers stored", "of all networks'", "teacher", "learning", "fitting"]
    return title + _table(head, rows)


def _operations(results: pd.DataFrame, costs: pd.DataFrame, file: Path) -> None:
    """Mean accuracy over the grid against all operations: a line per method, a point per epoch."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    costs = costs.assign(total=costs["teacher_flops"] + costs["learn_flops"] + costs["fit_flops"])
    for method, own in results.groupby("method", sort=False):
        begun = costs[costs["method"] == method]["total"].mean()
        by_seed = own.groupby(["epoch", "seed"])
        spent = by_seed["flops"].sum().groupby("epoch").mean() + begun
        reached = 100 * by_seed["accuracy"].mean().groupby("epoch").mean()
        there = spent > 0
        axes.plot(spent[there], reached[there], marker="o", label=str(method))
    axes.set(xscale="log", ylabel="test accuracy, mean over the sizes, %")
    axes.set_xlabel("operations: teacher, learning, fitting, and training of all sizes")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(file) as part:
        figure.savefig(part, dpi=120)
    plt.close(figure)


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
