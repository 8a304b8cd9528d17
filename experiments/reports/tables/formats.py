"""A table as text: for the terminal, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from experiments.reports.tables.build import Row, Table
from experiments.reports.tables.metrics import Measure


@dataclass(frozen=True)
class Cell:
    """A text that may be bold."""

    text: str
    bold: bool = False


def grid(table: Table) -> tuple[list[str], list[list[Cell]]]:
    """Heads of the columns, and the rows, as a person reads them."""
    request, first = table.request, table.request.measures[0]
    heads = [*table.axes, "seeds"] if table.axes else ["run", "seeds"]
    heads += [measure.title.format(target=request.target) for measure in request.measures]
    if table.compares:
        heads += ["Δ", "p"]
        if table.shows_wilcoxon:
            heads.append("p, Wilcoxon")
    return heads, [_row(table, row, first) for row in table.rows]


def _row(table: Table, row: Row, first: Measure) -> list[Cell]:
    request, plain = table.request, not table.has_intervals
    names = list(row.axes.values()) or ["all"]
    seeds = f"{len(row.runs)}/{len(row.runs) + len(row.failed)}" if row.failed else len(row.runs)
    cells = [Cell(name) for name in (*names, str(seeds))]
    failed = Cell("failed")
    for name, measure in zip(request.metrics, request.measures, strict=True):
        if not row.runs:
            cells.append(failed)
            failed = Cell("")
            continue
        found, text = row.mean(name), "-"
        if found is not None:
            text = _with_interval(*found, measure, plain)
        if found is not None and len(row.values[name]) < len(row.runs):
            text += f" ({len(row.values[name])} of {len(row.runs)})"
        cells.append(Cell(text))
    if table.compares:
        found_difference = row.compared
        if found_difference is None:
            return cells + [Cell("")] * (3 if table.shows_wilcoxon else 2)
        text = _with_interval(
            found_difference.difference, found_difference.half, first, plain, sign=True
        )
        cells.append(Cell(text, row.significant(request.test)))
        cells.append(Cell(_p(row.holm_t, found_difference.p_t, row.main)))
        if table.shows_wilcoxon:
            cells.append(Cell(_p(row.holm_wilcoxon, found_difference.p_wilcoxon, row.main)))
    return cells


def _with_interval(
    mean: float, half: float, measure: Measure, plain: bool, sign: bool = False
) -> str:
    digits, scale = measure.digits, measure.scale
    text = f"{scale * mean:{'+' if sign else ''}.{digits}f}"
    return (
        text
        if plain
        else f"{text} ± " + ("-" if math.isnan(half) else f"{scale * half:.{digits}f}")
    )


def _p(corrected: float, plain: float, main: bool) -> str:
    p = corrected if main else plain
    if math.isnan(p):
        return "-"
    text = "<0.001" if p < 0.001 else f"{p:.3f}"
    return text if main else f"({text})"


def show(table: Table, console: Console, title: str | None = None) -> None:
    """On the terminal, with the notes below."""
    heads, rows = grid(table)
    names = len(table.axes) or 1
    columns = []
    for i, head in enumerate(heads):
        # Heads may be broken between words; what stands below never is.
        longest = max([*map(len, head.split()), *(len(row[i].text) for row in rows)])
        columns.append(Column(head, min_width=longest, justify="left" if i < names else "right"))
    look: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    shown = RichTable(*columns, title=title, title_justify="left", **look)
    for row in rows:
        shown.add_row(*[Text(cell.text, "bold" if cell.bold else "") for cell in row])
    wide = console.measure(shown).minimum
    console.print(shown, width=max(console.width, wide), crop=False)  # cut off, it would mislead
    for note in table.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def to_markdown(table: Table) -> str:
    """A Markdown table, for a README or an issue."""
    heads, rows = grid(table)
    names = len(table.axes) or 1
    rules = [":--" if i < names else "--:" for i in range(len(heads))]
    lines = [[_escape(head, "|*_") for head in heads], rules]
    for row in rows:
        texts = [(_escape(cell.text, "|*_"), cell.bold) for cell in row]
        lines.append([f"**{text}**" if bold else text for text, bold in texts])
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"- {_escape(note, '*_')}" for note in table.notes)
    return f"{body}\n\n{notes}\n" if notes else f"{body}\n"


def _escape(text: str, special: str) -> str:
    return "".join(f"\\{c}" if c in special else c for c in text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "<": r"$<$",
    ">": r"$>$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(c, c) for c in text)
    return (
        f"${escaped[0]}${escaped[1:]}" if escaped[:1] in ("+", "-") and len(text) > 1 else escaped
    )


def to_latex(table: Table) -> str:
    """A LaTeX table, with the package booktabs."""
    heads, rows = grid(table)
    names = len(table.axes) or 1
    lines = [" & ".join(map(_latex, heads)) + r" \\", r"\midrule"]
    for row in rows:
        texts = [(_latex(cell.text), cell.bold) for cell in row]
        cells = [rf"\textbf{{{text}}}" if bold else text for text, bold in texts]
        lines.append(" & ".join(cells) + r" \\")
    body = "\n".join(lines)
    spec = "l" * names + "r" * (len(heads) - names)
    notes = "".join(f"% {' '.join(note.split())}\n" for note in table.notes)
    return (
        f"% \\usepackage{{booktabs}}\n{notes}\\begin{{tabular}}{{{spec}}}\n\\toprule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def to_csv(table: Table) -> str:
    """Numbers in full, shares between 0 and 1; an empty field where there is none."""
    request, out = table.request, io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [*table.axes, "seeds", "failed"]
    for metric in request.metrics:
        heads += [metric, f"{metric}_half", f"{metric}_n"]
    if table.compares:
        heads += ["main", "pairs", "difference", "difference_half", "p_t", "p_t_holm"]
        heads += ["p_wilcoxon", "p_wilcoxon_holm"]
    writer.writerow(heads)
    for row in table.rows:
        cells: list[object] = [*row.axes.values(), len(row.runs), len(row.failed)]
        for metric in request.metrics:
            mean, half = row.mean(metric) or (math.nan, math.nan)
            cells += [mean, half, len(row.values[metric])]
        if table.compares:
            c = row.compared
            if c is None:
                cells += [None] * 8
            else:
                cells += [row.main, c.pairs, c.difference, c.half, c.p_t, row.holm_t]
                cells += [c.p_wilcoxon, row.holm_wilcoxon]
        writer.writerow(
            ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells]
        )
    return out.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {
    "md": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
}
