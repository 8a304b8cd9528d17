"""What a person sees of a run's result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def show(console: Console, result: Mapping[str, Any], folder: Path) -> None:
    """Print the figures of a run's result, and where its folder is."""
    table = Table("", "", show_header=False, box=None)
    names = {
        "accuracy": "accuracy, global test set",
        "validation_accuracy": "accuracy, validation split",
        "client_accuracy_mean": "accuracy, clients' hold-outs",
        "client_accuracy_worst10": "  of the worst tenth",
        "adapted_accuracy_mean": "  after they adapted the model",
        "unseen_accuracy_mean": "accuracy, clients that never trained",
        "unseen_accuracy_worst10": "  of the worst tenth",
        "unseen_adapted_accuracy_mean": "  after they adapted the model",
        "unseen_adapted_accuracy_worst10": "  and of the worst tenth then",
        "failed": "failed client rounds",
        "rejected": "  of them refused by the guard",
        "dropped": "client rounds without an answer",
        "late": "client rounds past the deadline",
        "attack_success": "answers that the attack wants",
        "best_round": "best round by the validation split",
        "epsilon": "ε of differential privacy",
    }
    optional = {"validation_accuracy", "rejected", "dropped", "late", "epsilon"}
    for key, name in names.items():
        value = result.get(key)
        if value is None or (key in optional and not value):
            continue
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
        if key == "accuracy":
            for size, accuracy in result.get("sizes", {}).items():
                table.add_row(f"  of size {size}", f"{accuracy:.4f}")
    table.add_row("rounds, seconds", f"{result['rounds']}, {result['seconds']:.1f}")
    table.add_row("run folder", os.path.relpath(folder))
    console.print(table)
