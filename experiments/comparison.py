"""Runs side by side: a table and a picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Column, Table

from experiments.plots import plot_curves
from experiments.runs import read_history, read_result

_LAST = 5

_COLUMNS = {
    "accuracy": "accuracy",
    "accuracy_last": f"last {_LAST}",
    "loss": "loss",
    "client_accuracy_mean": "clients",
    "client_accuracy_worst10": "worst 10 %",
    "seconds": "seconds",
}


def compare(runs: list[tuple[str, Path]], folder: Path) -> None:
    """Show runs side by side and save the comparison to ``folder``.

    Parameters
    ----------
    runs
        Overrides and run folder of each; a folder without a result is shown as failed.
    """
    done = [(name, path) for name, path in runs if (path / "result.json").exists()]
    results = [read_result(path) for _, path in done]
    histories = [read_history(path) for _, path in done]
    for result, history in zip(results, histories, strict=True):
        result["accuracy_last"] = history["accuracy"].dropna().tail(_LAST).mean()
    names = _differing([name for name, _ in done])
    labels = [f"{r['algorithm']} {n}".strip() for r, n in zip(results, names, strict=True)]
    numbers = [Column(name, no_wrap=True, min_width=6) for name in _COLUMNS.values()]
    title = "Global model after the last round"
    table = Table(Column("run", overflow="fold"), *numbers, title=title)
    for label, result in zip(labels, results, strict=True):
        table.add_row(label, *[_cell(key, result[key]) for key in _COLUMNS])
    for name, path in runs:
        if (name, path) not in done:
            table.add_row(name, "failed")
    console = Console()
    console.print(table)
    if done:
        cohorts: dict[int, set[tuple[str, ...]]] = {}
        for result, history in zip(results, histories, strict=True):
            cohorts.setdefault(result["seed"], set()).add(tuple(history["cohort"].astype(str)))
        same = all(len(distinct) == 1 for distinct in cohorts.values())
        verdict = "the same in all runs of a seed" if same else "differ between runs of a seed"
        console.print(f"cohorts: {verdict}")
        rows = [{"run": label, **result} for label, result in zip(labels, results, strict=True)]
        pd.DataFrame(rows).to_csv(folder / "comparison.csv", index=False)
        plot_curves(list(zip(labels, histories, strict=True)), folder / "comparison.png")
        console.print(f"saved to {folder}/: comparison.csv, comparison.png, each run's folder")


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if key == "seconds" else f"{value:.4f}"


def _differing(names: list[str]) -> list[str]:
    """The overrides of each run that not all runs share, without wsa=, which the label says."""
    words = [name.replace("+", "").split() for name in names]
    shared = set.intersection(*map(set, words)) if words else set()
    return [
        " ".join(w for w in own if w not in shared and not w.startswith("wsa=")) for own in words
    ]
