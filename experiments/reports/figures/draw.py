"""The pictures: curves, clients, scopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from experiments.reports.figures.style import Look, legend, looks, name, panels
from experiments.reports.statistics import interval
from experiments.reports.tables.build import Row
from fedwsa.config.component import ConfigError
from fedwsa.runfolder.read import Unusable, numbers, read_columns

Array = NDArray[np.float64]

_BAND_OF = 3
"""Seeds from which on a band is drawn: the 95 % interval of two is nine deviations wide."""


@dataclass(frozen=True)
class Quantity:
    """A column of the history, and how it is drawn."""

    column: str
    title: str
    scale: float = 1.0


QUANTITIES = {
    "accuracy": Quantity("accuracy", "accuracy, global test set, %", 100),
    "loss": Quantity("loss", "loss, global test set"),
    "clients": Quantity("client_accuracy_mean", "mean accuracy of clients, %", 100),
}


def split(rows: Sequence[Row], axes: Sequence[str]) -> dict[str, list[tuple[Row, dict[str, str]]]]:
    """Rows by panel: its title, and with each row the axes that the title does not tell."""
    found: dict[str, list[tuple[Row, dict[str, str]]]] = {}
    for row in rows:
        title = name({axis: row.axes[axis] for axis in axes})
        rest = {axis: label for axis, label in row.axes.items() if axis not in axes}
        found.setdefault(title, []).append((row, rest))
    return found


def _looks_of(rows: Sequence[Row], axes: Sequence[str]) -> dict[tuple[str, ...], Look]:
    """The look of each group by its labels, the same in all panels and pictures of the rows."""
    parts = split(rows, axes).values()
    rests = {tuple(rest.values()): rest for groups in parts for _, rest in groups}
    return dict(zip(rests, looks(list(rests.values())), strict=True))


def over_seeds(series: Sequence[Mapping[int, float]]) -> tuple[Array, Array, Array]:
    """Rounds that all seeds have, with mean and half the 95 % interval; zero for one seed."""
    rounds = sorted(set.intersection(*(set(one) for one in series)))
    pairs = [interval([one[r] for one in series]) for r in rounds]
    mean, half = (np.array(column) for column in zip(*pairs, strict=True)) if pairs else ([], [])
    return np.array(rounds, float), np.asarray(mean), np.nan_to_num(np.asarray(half))


def curves(rows: Sequence[Row], axes: Sequence[str], quantity: Quantity) -> Figure | None:
    """A quantity over rounds: a line per group, a band of 95 % over three or more seeds.

    None if no run has it.
    """
    parts = split([row for row in rows if _histories(row, quantity)], axes)
    if not parts:
        return None
    figure, drawn = panels(len(parts))
    shown = _looks_of(rows, axes)
    for panel, (title, groups) in zip(drawn, parts.items(), strict=True):
        panel.set_title(title)
        lines = []
        for i, (row, rest) in enumerate(groups):
            series = [
                {r: quantity.scale * v for r, v in one.items()} for one in _histories(row, quantity)
            ]
            look = shown[tuple(rest.values())]
            lines.append(_line(panel, series, look, name(rest) or None, i))
        _frame(panel, lines, bounded=quantity.scale == 100)
        panel.set_xlabel(_round_label([row for row, _ in groups]))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _left_labels(drawn, quantity.title)
    legend(figure, drawn)
    return figure


def by_size(rows: Sequence[Row]) -> Figure | None:
    """Accuracy of each size's model over rounds: a panel per size, a line per group.

    None if no run has sizes.
    """
    rows = [row for row in rows if any(run.sizes for run in row.runs)]
    sizes = list(dict.fromkeys(size for row in rows for run in row.runs for size in run.sizes))
    if not sizes:
        return None
    figure, drawn = panels(len(sizes))
    shown = _looks_of(rows, [])
    for panel, size in zip(drawn, sizes, strict=True):
        panel.set_title(f"size {size}")
        lines = []
        for i, row in enumerate(rows):
            of_runs = [run.sizes[size] for run in row.runs if size in run.sizes]
            if of_runs:
                series = [{r: 100 * v for r, v in one.items()} for one in of_runs]
                look = shown[tuple(row.axes.values())]
                lines.append(_line(panel, series, look, name(row.axes) or None, i))
        _frame(panel, lines, bounded=True)
        panel.set_xlabel(_round_label(rows))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = (pick(p.get_ylim()[k] for p in drawn) for k, pick in ((0, min), (1, max)))
    for panel in drawn:  # sizes are compared, too
        panel.set_ylim(low, high)
    _left_labels(drawn, QUANTITIES["accuracy"].title)
    legend(figure, drawn)
    return figure


def _histories(row: Row, quantity: Quantity) -> list[dict[int, float]]:
    """Of each run, the values by round."""
    found = []
    for run in row.runs:
        column = enumerate(run.column(quantity.column), start=1)
        if values := {number: v for number, v in column if v is not None}:
            found.append(values)
    return found


def _line(
    panel: Axes, series: Sequence[Mapping[int, float]], look: Look, label: str | None, place: int
) -> tuple[Array, Array]:
    rounds, mean, half = over_seeds(series)
    step = max(1, len(rounds) // 5)
    panel.plot(
        rounds,
        mean,
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markevery=(place % step, step),  # side by side, where lines lie on each other
        label=label,
    )
    if len(series) < _BAND_OF:
        return mean, np.zeros_like(mean)
    panel.fill_between(rounds, mean - half, mean + half, color=look.colour, alpha=0.12, linewidth=0)
    return mean, half


def _round_label(rows: Sequence[Row]) -> str:
    """What the axis of rounds says, and of what the bands are."""
    seeds = sorted({len(row.runs) for row in rows if len(row.runs) >= _BAND_OF})
    counts = f"{seeds[0]} to {seeds[-1]}" if seeds[1:] else str(*seeds)
    return f"round (bands: 95 % over {counts} seeds)" if seeds else "round"


def _frame(panel: Axes, lines: Sequence[tuple[Array, Array]], bounded: bool) -> None:
    """Limits by the means: the band of two seeds can be wider than the whole scale."""
    means = np.concatenate([mean for mean, _ in lines])
    low, high = float(means.min()), float(means.max())
    room = 0.15 * (high - low or 1.0)
    widest = max(float(half.max(initial=0)) for _, half in lines)
    room += min(widest, high - low)
    low, high = low - room, high + room
    panel.set_ylim((max(0.0, low), min(100.0, high)) if bounded else (low, high))


def _left_labels(drawn: Sequence[Axes], text: str) -> None:
    for i, panel in enumerate(drawn):
        if i % 3 == 0:
            panel.set_ylabel(text)


def _read(
    file: Path, one: str, other: str
) -> tuple[dict[str, list[str]], list[float | None], list[float | None]]:
    """A CSV of a run folder, and two of its columns as numbers; empty if there is none."""
    try:
        columns = read_columns(file)
        first, second = (numbers(file, columns.get(key, [])) for key in (one, other))
    except Unusable as error:
        raise ConfigError(f"{file.parent}: {error}") from None
    return columns, first, second


def client_scores(folder: Path) -> Array:
    """Accuracies of the clients' hold-outs in the last round; empty if the run has none."""
    _, rounds, scores = _read(folder / "client_scores.csv", "round", "accuracy")
    last = max((number for number in rounds if number is not None), default=0)
    rows = zip(rounds, scores, strict=True)
    return np.array([score for number, score in rows if number == last and score is not None])


def clients(rows: Sequence[Row], axes: Sequence[str]) -> Figure | None:
    """How accuracy is spread over clients: a box per group, clients of all seeds together.

    Boxes are the quartiles, whiskers reach from 5 to 95 %, the diamond is the mean. None if no
    run has the clients' scores.
    """
    scores = {id(row): [client_scores(run.folder) for run in row.runs] for row in rows}
    pooled = {key: 100 * np.concatenate(found) for key, found in scores.items() if found}
    parts = split([row for row in rows if len(pooled.get(id(row), ()))], axes)
    if not parts:
        return None
    most, beside = max(len(groups) for groups in parts.values()), [""]
    figure, drawn = panels(
        len(parts), height=max(1.15, 0.65 + 0.22 * most)
    )  # 0.65: what is written around
    shown = _looks_of(rows, axes)
    for i, (panel, (title, groups)) in enumerate(zip(drawn, parts.items(), strict=True)):
        panel.set_title(title)
        boxes = panel.boxplot(
            [pooled[id(row)] for row, _ in groups],
            orientation="horizontal",
            widths=0.6,
            whis=(5, 95),
            showfliers=False,
            showmeans=True,
            patch_artist=True,
            tick_labels=[name(rest) or "all" for _, rest in groups],
            medianprops={"color": "black"},
            meanprops={
                "marker": "D",
                "markersize": 3,
                "markerfacecolor": "white",
                "markeredgecolor": "black",
                "markeredgewidth": 0.6,
            },
        )
        for box, (_, rest) in zip(boxes["boxes"], groups, strict=True):
            look = shown[tuple(rest.values())]
            box.set(facecolor=look.colour, alpha=0.6, linestyle=look.dash)
        panel.set(xlim=(-2, 102), xlabel="accuracy of a client's hold-out, %")
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        labels = [name(rest) for _, rest in groups]
        if i % 3 and labels == beside:
            panel.set_yticklabels([])
        beside = labels
    return figure


Scopes = dict[str, dict[int, float]]


def read_scopes(folder: Path, column: str) -> Scopes:
    """A column of ``scopes.csv`` by layer and round; empty for a run without WSA."""
    columns, rounds, values = _read(folder / "scopes.csv", "round", column)
    found: Scopes = {}
    for layer, number, value in zip(columns.get("layer", []), rounds, values, strict=True):
        if number is not None and value is not None:
            found.setdefault(layer, {})[int(number)] = value
    return found


_MOST = 24  # layers that are drawn
_STDS = (("fused_std", "-", "fused"), ("averaged_std", ":", "average"))


def scopes(groups: Sequence[tuple[Row, dict[str, str]]]) -> Figure | None:
    """Standard deviation of each layer over rounds: fused (line) and of the average (dots).

    A panel per layer, a colour per group. None if no run has scopes.
    """
    groups = [g for g in groups if any(read_scopes(r.folder, "fused_std") for r in g[0].runs)]
    if not groups:
        return None
    read = [
        {c: [read_scopes(r.folder, c) for r in row.runs] for c, *_ in _STDS} for row, _ in groups
    ]
    layers = list(dict.fromkeys(layer for one in read for s in one["fused_std"] for layer in s))
    if len(layers) > _MOST:
        layers = [layers[i] for i in np.linspace(0, len(layers) - 1, _MOST).round().astype(int)]
    rests = [rest for _, rest in groups]
    telling = [axis for axis in rests[0] if len({rest[axis] for rest in rests}) > 1]
    figure, drawn = panels(len(layers), height=1.4)
    shown = [Look(look.colour, "-", look.marker) for look in _colours(groups)]
    for panel, layer in zip(drawn, layers, strict=True):
        panel.set_title(layer)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("round")
        for i, ((_, rest), look, one) in enumerate(zip(groups, shown, read, strict=True)):
            label = name({axis: rest[axis] for axis in telling})
            for column, dash, what in (
                ("fused_std", "-", "fused"),
                ("averaged_std", ":", "average"),
            ):
                series = [found[layer] for found in one[column] if layer in found]
                if series:
                    text = f"{label}, {what}" if label else what
                    _line(panel, series, Look(look.colour, dash, look.marker), text, i)
    _left_labels(drawn, "σ of the weights")
    legend(figure, drawn)
    return figure


def _colours(groups: Sequence[tuple[Row, dict[str, str]]]) -> list[Look]:
    """A colour for each group, by its place: dashes tell fused from averaged here."""
    return looks([{"group": str(i)} for i in range(len(groups))])


__all__ = ["QUANTITIES", "by_size", "clients", "curves", "plt", "scopes", "split"]
