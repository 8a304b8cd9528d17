"""Pictures of a run and of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: works without a screen

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from experiments.reports.partition_pictures import severity_line
from fedwsa.runfolder.files import replacing

_SIZE = (9.0, 3.4)


_MANY = 3  # lines, beyond which their names stand below


def plot_curves(histories: Sequence[tuple[str, pd.DataFrame]], file: Path) -> None:
    """Accuracy and loss on the global test set over rounds, a line per run.

    Where each client has a model of its own, the accuracy is the mean of theirs on their own data,
    and dashed.
    """
    rows = -(-len(histories) // 3) if len(histories) > _MANY else 0
    size = (_SIZE[0], _SIZE[1] + 0.2 * rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained")
    for label, history in histories:
        has_global = history["accuracy"].notna().any()
        column = "accuracy" if has_global else "client_accuracy_mean"
        seen = history.dropna(subset=[column])
        look = {"marker": "o" if len(seen) < 2 else None, "linestyle": "-" if has_global else "--"}
        if not has_global:
            left.set_title("dashed: mean of the clients' own models", fontsize=8)
        left.plot(seen["round"], seen[column], label=label, **look)
        right.plot(seen["round"], seen["loss"], **look)
    left.set(xlabel="round", ylabel="accuracy, global test set", ylim=(0, 1))
    right.set(xlabel="round", ylabel="loss, global test set", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if rows:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    else:
        left.legend()
    with replacing(file) as part:
        figure.savefig(part, dpi=150)
    plt.close(figure)


_FEW = 60  # clients that are drawn apart


def plot_partition(partition: Mapping[str, Any], file: Path) -> None:
    """Samples of each client, stacked by class."""
    counts = np.asarray(partition["label_counts"])
    clients, classes = counts.shape
    figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
    colours = plt.get_cmap("tab10" if classes <= 10 else "viridis")
    bottom = np.zeros(clients)
    edges = np.arange(clients + 1) - 0.5
    for label in range(classes):
        colour = colours(label if classes <= 10 else label / (classes - 1))
        top = bottom + counts[:, label]
        # One shape per class: bars would be one per class and client, too many to draw.
        axes.stairs(top, edges, baseline=bottom, fill=True, color=colour, label=str(label))
        bottom = top
    if clients <= _FEW:
        axes.vlines(edges, 0, 1.05 * bottom.max(), color="white", linewidth=2)
    axes.set(xlabel="client", ylabel="samples", xlim=(-0.6, clients - 0.4))
    axes.set_ylim(0, 1.05 * bottom.max())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = f"{partition['name']}: samples of each client by class\n{severity_line(partition)}"
    axes.set_title(title, fontsize=10)
    if classes <= 10:
        axes.legend(title="class", ncols=1, bbox_to_anchor=(1.0, 1.0), loc="upper left", fontsize=8)
    with replacing(file) as part:
        figure.savefig(part, dpi=150)
    plt.close(figure)
