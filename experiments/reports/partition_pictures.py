"""Pictures of a partition: who has how many samples of which class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: works without a screen

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedwsa.runfolder.files import replacing

_MANY = 100  # clients, above which bubbles are too small to compare
_COLUMNS = 1000  # of a heat map at most
_COLOUR = "#0072B2"  # of Okabe and Ito's palette, which colour-blind readers can tell apart


def severity_line(partition: Mapping[str, Any]) -> str:
    """The severity figures of a ``partition.json`` in a line."""
    found = partition["severity"]
    return (
        f"Jensen–Shannon {found['jensen_shannon']:.3f} bit, earth mover's "
        f"{found['earth_movers']:.3f}, Gini {found['gini']:.3f}"
    )


def plot_labels(partition: Mapping[str, Any], file: Path) -> None:
    """Bubbles of classes over clients, their area the count; a heat map for many clients.

    Parameters
    ----------
    partition
        What ``partition.json`` holds.
    file
        Its suffix is the format: png, svg, pdf.
    """
    counts = np.asarray(partition["label_counts"])
    figure = _heat_map(counts) if len(counts) > _MANY else _bubbles(counts)
    chosen = {k: v for k, v in partition["arguments"].items() if isinstance(v, int | float)}
    chosen = {k: v for k, v in chosen.items() if k not in ("clients", "seed")}
    words = ", ".join(f"{k}={v:g}" for k, v in chosen.items())
    title = f"{partition['name']}{f' ({words})' if words else ''}: "
    title += f"{partition['samples']:,} samples, clients: {len(counts):,}"
    figure.axes[0].set_title(f"{title}\n{severity_line(partition)}", fontsize=10)
    with replacing(file) as part:
        figure.savefig(part, dpi=150)
    plt.close(figure)


def _bubbles(counts: NDArray[np.int64]) -> Figure:
    clients, classes = counts.shape
    cell = min(0.3, 12 / clients, 9 / classes)  # inches
    size = (max(4.5, cell * clients + 2.2), max(2.6, cell * classes + 1.4))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    client, label = np.nonzero(counts)
    most = counts.max()
    area = (0.95 * 72 * cell) ** 2  # of the largest, in square points
    style: dict[str, Any] = {"color": _COLOUR, "linewidths": 0, "alpha": 0.8}
    axes.scatter(client, label, s=counts[client, label] / most * area, **style)
    for count in sorted({max(1, round(float(most) * part)) for part in (1.0, 0.25, 0.05)})[::-1]:
        axes.scatter([], [], s=count / most * area, label=f"{count:,}", **style)
    axes.legend(
        title="samples",
        fontsize=8,
        title_fontsize=8,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        labelspacing=1.2,
    )
    axes.set(xlabel="client", ylabel="class", xlim=(-0.7, clients - 0.3))
    axes.set_ylim(classes - 0.3, -0.7)
    axes.set_aspect("equal")
    _whole_numbers(axes)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure


def _heat_map(counts: NDArray[np.int64]) -> Figure:
    """Label distribution of each client, those with the same main class side by side.

    Of more clients than a picture has columns, neighbours are averaged.
    """
    sizes = counts.sum(1)
    shares = counts / sizes[:, None]
    order = np.lexsort((-shares.max(1), shares.argmax(1)))
    columns = np.array_split(order, min(len(counts), _COLUMNS))
    sizes = np.array([sizes[c].mean() for c in columns])
    shares = np.array([shares[c].mean(0) for c in columns])
    right = len(counts) - 0.5
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9.0, 4.4), layout="constrained", sharex=True, height_ratios=(1, 3)
    )
    edges = np.linspace(-0.5, right, len(columns) + 1)
    above.stairs(sizes, edges, fill=True, color="#777777")
    above.set(ylabel="samples", ylim=(0, None))
    # The colour bar ends where all but a hundredth of the cells do: a few hide no others.
    drawn = below.imshow(
        shares.T,
        aspect="auto",
        interpolation="none",
        cmap="cividis",
        vmin=0,
        vmax=max(float(np.quantile(shares, 0.99)), 1e-9),
        extent=(-0.5, right, counts.shape[1] - 0.5, -0.5),
    )
    below.set(xlabel="clients, in the order of their main class", ylabel="class")
    _whole_numbers(below)
    figure.colorbar(drawn, ax=below, label="share of the client's samples", extend="max")
    return figure


def _whole_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=12))
