"""The command ``fedwsa-partition``: make a partition, say how skewed it is, train nothing."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.commands.help import partition_help
from experiments.commands.preamble import composing
from fedwsa import interruption
from fedwsa.command_line import fail, in_one_line
from fedwsa.data.federated import open_federated
from fedwsa.data.partition_files import write_partition
from fedwsa.runfolder.tensors import require_writable
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config

_COMMAND = "fedwsa-partition"
console = Console()


def report(config: Config, folder: Path) -> None:
    """Make the partition of a run and leave ``partition.json`` and ``partition.png``.

    Raises
    ------
    ConfigError
        If the partition cannot be made, or the folder holds one already; nothing is written then.
    """
    with console.status("making the partition ..."):
        partition = open_federated(config.data_spec).partition
        described = {**partition.described(), "label_counts": partition.label_counts}
    file, picture = folder / "partition.json", folder / "partition.png"
    for place in (file, picture):
        require_writable(place, "out")
    from experiments.reports.partition_pictures import (
        plot_labels,  # matplotlib: only now that it is needed
    )

    with console.status("drawing ..."):
        plot_labels(described, picture)
    write_partition(file, partition)
    _show(described, folder)


def _show(partition: dict[str, Any], folder: Path) -> None:
    counts = np.asarray(partition["label_counts"])
    sizes, held = counts.sum(1), (counts > 0).sum(1)
    pool, found = partition["data"]["samples"], partition["severity"]
    rest = pool - partition["samples"]
    table = Table("", "", show_header=False, box=None)
    table.add_row("partition", partition["name"])
    table.add_row("clients", f"{len(counts):,}")
    table.add_row("samples", f"{partition['samples']:,}" + f", {rest:,} left out" * bool(rest))
    table.add_row("  of a client", _spread(sizes))
    table.add_row("classes of a client", f"{_spread(held)} of {counts.shape[1]}")
    table.add_row("Jensen–Shannon divergence", f"{found['jensen_shannon']:.4f} bit, mean")
    table.add_row("earth mover's distance", f"{found['earth_movers']:.4f}, mean")
    table.add_row("Gini of sizes", f"{found['gini']:.4f}")
    table.add_row("hash", partition["hash"][:12])
    table.add_row("folder", os.path.relpath(folder))
    console.print(table)


def _spread(values: np.ndarray[Any, Any]) -> str:
    low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
    return f"{low:g} to {high:g}, median {middle:g}"


def main() -> None:
    """Run the command: every error ends in one line and exit code 1."""
    words = sys.argv[1:]
    if {"--help", "-h"} & set(words):
        with suppress(BrokenPipeError):
            print(partition_help(), flush=True)
        return
    if flags := [word for word in words if word.startswith("-")]:
        fail(_COMMAND, f"{flags[0]}: no such flag; --help shows groups and keys")
    overrides = [word for word in words if not word.startswith("out=")]
    named = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    started = datetime.now().strftime("%Y-%m-%d/%H-%M-%S-%f")
    folder = Path(named[-1] if named else f"runs/partitions/{started}")
    sys.path.append(os.getcwd())  # a partition or data source of one's own lies there
    with in_one_line(_COMMAND), composing(_COMMAND, overrides):
        config = compose(overrides)
        interruption.check()
        report(config, folder)


if __name__ == "__main__":
    main()
