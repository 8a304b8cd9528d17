"""Tables and pictures of the study, from the points in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.connectivity.lines import TREATMENTS
from experiments.reports.figures.style import COLOURS, COLUMN, DASHES, MARKERS, PAGE, STYLE
from experiments.reports.statistics import interval, paired
from fedwsa.merge.connectivity import rise
from fedwsa.runfolder.files import replacing, write_text

POINTS = "points.csv"
_PAIR = ["seed", "init", "condition", "wsa"]
COLUMNS = [*_PAIR, "treatment", "scope_kl", "alpha", "loss", "accuracy"]
_INITS = {"same": "the same initial weights", "apart": "initial weights drawn apart"}
_WORDS = {
    "plain": "as they are",
    "rescale": "rescaled",
    "permutation": "permuted",
    "permutation_rescale": "permuted, rescaled",
}


def barriers(points: pd.DataFrame) -> pd.DataFrame:
    """A row for each line: its barriers, and how well its ends do in the mean.

    Parameters
    ----------
    points
        With the columns :data:`COLUMNS`.
    """
    rows = []
    for key, line in points.groupby([*_PAIR, "treatment"], sort=False):
        line = line.sort_values("alpha")
        ends = line.iloc[[0, -1]]
        rows.append(
            {
                **dict(zip([*_PAIR, "treatment"], key, strict=True)),
                "loss": rise(line["alpha"], line["loss"]),
                "accuracy": 100 * rise(line["alpha"], -line["accuracy"]),
                "ends": 100 * ends["accuracy"].mean(),
                "middle": 100 * float(line["accuracy"].iloc[len(line) // 2]),
                "scope_kl": line["scope_kl"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def summarise(folder: Path) -> str:
    """Write ``summary.md`` and the pictures; returns the text."""
    points = pd.read_csv(folder / POINTS)
    found = barriers(points)
    parts = [
        table
        for init in found["init"].unique()
        for table in _tables(found[found["init"] == init], str(init))
    ]
    text = "\n\n".join(parts) + "\n"
    write_text(folder / "summary.md", text)
    with plt.rc_context(STYLE):
        _draw_barriers(found, folder / "barriers.png")
        _draw_lines(points, folder / "lines.png")
    return text


def _tables(found: pd.DataFrame, init: str) -> list[str]:
    seeds = found["seed"].nunique()
    number = f"{seeds} seed" + ("" if seeds == 1 else "s")
    said = f"{_INITS[init]}, mean ± 95 % interval over {number}"
    return [
        f"Barrier of the test loss, {said}; `WSA − none`: paired difference.\n\n"
        + _table(found, "loss", 2),
        f"Barrier of the test accuracy in points, {said}.\n\n" + _table(found, "accuracy", 1),
        f"Test accuracy in the middle of the line in %, {said}; `ends`: of A and B as they are.\n\n"
        + _table(found, "middle", 1),
    ]


def _table(found: pd.DataFrame, value: str, digits: int) -> str:
    head = ["condition", "trained", "ends, %", "scopes' KL", *(_WORDS[t] for t in TREATMENTS)]
    rows = []
    for condition in found["condition"].unique():
        own = found[found["condition"] == condition]
        for wsa, word in (("off", "plain"), ("on", "WSA")):
            of = own[own["wsa"] == wsa]
            plain = of[of["treatment"] == "plain"]
            cells = [_mean(of[of["treatment"] == t][value], digits) for t in TREATMENTS]
            apart = f"{plain['scope_kl'].mean():.2g}"
            rows.append([f"{condition}", word, _mean(plain["ends"], 1), apart, *cells])
        cells = [_difference(own[own["treatment"] == t], value, digits) for t in TREATMENTS]
        rows.append(["", "WSA − none", "", "", *cells])
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(values: pd.Series[float], digits: int) -> str:
    mean, half = interval(values.to_numpy())
    return f"{mean:.{digits}f}" if np.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def _difference(own: pd.DataFrame, value: str, digits: int) -> str:
    wide = own.pivot(index="seed", columns="wsa", values=value)
    if not {"off", "on"} <= set(wide.columns) or (wide := wide.dropna()).empty:
        return "-"
    found = paired(wide["on"].to_numpy(), wide["off"].to_numpy())
    half = "" if np.isnan(found.half) else f" ± {found.half:.{digits}f}"
    return f"{found.difference:+.{digits}f}{half}"


def _draw_barriers(found: pd.DataFrame, file: Path) -> None:
    """Accuracy barriers, a panel for each beginning, conditions side by side."""
    inits, conditions = list(found["init"].unique()), list(found["condition"].unique())
    figure, grid = plt.subplots(
        len(inits),
        1,
        figsize=(COLUMN, 0.9 + 1.6 * len(inits)),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for axes, init in zip(grid[:, 0], inits, strict=True):
        for place, (treatment, wsa) in enumerate(_looks()):
            own = found[
                (found["init"] == init) & (found["treatment"] == treatment) & (found["wsa"] == wsa)
            ]
            _marks(axes, own, conditions, place, treatment, wsa)
        axes.set_title(_INITS[str(init)])
        axes.set_ylabel("accuracy barrier, points")
        axes.grid(axis="x", visible=False)
    grid[-1, 0].set_xticks(range(len(conditions)), conditions, rotation=35, ha="right")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    with replacing(file) as part:
        figure.savefig(part)
    plt.close(figure)


def _looks() -> list[tuple[str, str]]:
    return [(treatment, wsa) for treatment in TREATMENTS for wsa in ("off", "on")]


def _label(treatment: str, wsa: str) -> str:
    return _WORDS[treatment] + (", WSA" if wsa == "on" else "")


def _marks(
    axes: Axes,
    own: pd.DataFrame,
    conditions: Sequence[str],
    place: int,
    treatment: str,
    wsa: str,
) -> None:
    """Means and intervals of a treatment, one for each condition."""
    there = [(i, c) for i, c in enumerate(conditions) if (own["condition"] == c).any()]
    spread = [interval(own[own["condition"] == c]["accuracy"].to_numpy()) for _, c in there]
    number = TREATMENTS.index(treatment)
    colour = COLOURS[number]
    axes.errorbar(
        [i + 0.1 * (place - 3.5) for i, _ in there],
        [mean for mean, _ in spread],
        [np.nan_to_num(half) for _, half in spread],
        fmt=MARKERS[number],
        color=colour,
        markerfacecolor=colour if wsa == "on" else "white",
        markersize=2.8,
        markeredgewidth=0.7,
        elinewidth=0.6,
        label=_label(treatment, wsa),
    )


def _draw_lines(points: pd.DataFrame, file: Path) -> None:
    """Mean test accuracy along the lines, a panel for each condition and beginning."""
    inits, conditions = list(points["init"].unique()), list(points["condition"].unique())
    figure, grid = plt.subplots(
        len(inits),
        len(conditions),
        figsize=(PAGE, 0.8 + 1.4 * len(inits)),
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    means = points.groupby(["init", "condition", "wsa", "treatment", "alpha"])["accuracy"].mean()
    for row, init in zip(grid, inits, strict=True):
        for axes, condition in zip(row, conditions, strict=True):
            for treatment, wsa in _looks():
                if (init, condition, wsa, treatment) not in means:  # not measured yet
                    continue
                line = 100 * means[init, condition, wsa, treatment]
                axes.plot(
                    line.index,
                    line.to_numpy(),
                    color=COLOURS[TREATMENTS.index(treatment)],
                    linestyle=DASHES[wsa == "on"],
                    linewidth=0.9,
                    label=_label(treatment, wsa),
                )
            axes.set_xticks([0, 1], ["A", "B"])
        row[0].set_ylabel(f"test accuracy, %\n(init {init})")
    for axes, condition in zip(grid[0], conditions, strict=True):
        axes.set_title(condition)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    with replacing(file) as part:
        figure.savefig(part)
    plt.close(figure)
