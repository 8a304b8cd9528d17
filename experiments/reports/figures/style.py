"""How pictures look: sizes and fonts of a paper's column, colours that everybody can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: works without a screen

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedwsa.runfolder.files import replacing

COLUMN, PAGE = 3.4, 7.0  # inches: one column of a paper, and both
_LINES = 8  # in a panel, unless the axes leave no choice

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is too pale for lines.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES: list[Any] = ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]

STYLE: Any = {  # matplotlib's stubs name each key
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",  # text stays text
    "figure.dpi": 100,
    "savefig.dpi": 300,
}


@dataclass(frozen=True)
class Look:
    """Colour, dash and marker of a line, the same in all figures."""

    colour: str
    dash: Any
    marker: str


def looks(groups: Sequence[Mapping[str, str]]) -> list[Look]:
    """Colours and dashes for the lines of a panel.

    With several axes the last (``wsa`` in most studies) is told by the dash, the others by colour
    and marker; a single one by all of them, so that print in grey can be read, too.
    """
    keys = [tuple(group.values()) for group in groups]
    if not keys or len(keys[0]) < 2:
        return [_look(i, i) for i in range(len(keys))]
    heads = list(dict.fromkeys(key[:-1] for key in keys))
    tails = list(dict.fromkeys(key[-1] for key in keys))
    return [_look(heads.index(key[:-1]), tails.index(key[-1])) for key in keys]


def _look(colour: int, dash: int) -> Look:
    return Look(
        COLOURS[colour % len(COLOURS)], DASHES[dash % len(DASHES)], MARKERS[colour % len(MARKERS)]
    )


def panel_axes(groups: Sequence[Mapping[str, str]]) -> list[str]:
    """The axes whose labels have panels of their own.

    All but the last two that vary, or the last alone where that leaves fewer lines in each.
    """
    axes = list(groups[0]) if groups else []
    varying = [axis for axis in axes if len({group[axis] for group in groups}) > 1]
    lines = varying[-2:]
    if len({tuple(group[axis] for axis in lines) for group in groups}) > _LINES:
        lines = varying[-1:]
    return [axis for axis in axes if axis not in lines]


def panels(count: int, height: float = 2.0) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels: one in a column, more over the page."""
    columns = min(count, 3)
    rows = -(-count // columns)
    width = COLUMN if count == 1 else PAGE
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(width, height * rows),
        squeeze=False,
        layout="constrained",
    )
    drawn = list(grid.flat)
    for axes in drawn[count:]:
        axes.set_axis_off()
    return figure, drawn[:count]


def legend(figure: Figure, drawn: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    handles: dict[str, Any] = {}
    for axes in drawn:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if len(handles) > 1:
        width = max(map(len, handles))
        inches = figure.get_size_inches()[0]
        columns = max(1, min(len(handles), int(inches / (0.55 + 0.062 * width))))
        rows = -(-len(handles) // columns)
        figure.set_figheight(figure.get_figheight() + 0.15 + 0.16 * rows)  # panels keep theirs
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)


def name(axes: Mapping[str, str]) -> str:
    """A group in words: labels that say enough, others with their axis."""
    return " ".join(
        f"{axis} {label}" if label in ("on", "off", "-") or _is_number(label) else label
        for axis, label in axes.items()
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def save(figure: Figure, file: Path) -> list[Path]:
    """Write a picture as PNG and SVG."""
    written = [file.with_name(f"{file.name}.{suffix}") for suffix in ("png", "svg")]
    for path in written:
        # No date in the SVG: the same runs give the same file.
        with replacing(path) as part:
            figure.savefig(part, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return written
