"""Seconds to share 60,000 labels out among 1000 clients, for every partition.

``python -m experiments.bench.partitions [--clients N] [--samples N]``
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fedwsa.config.component import Component, ConfigError
from fedwsa.config.places import CONFIG_DIR
from fedwsa.data.partition import Facts, make_shares
from fedwsa.schema.compose import compose

REPEATS = 3


def main() -> None:
    """Print a row for each file in ``conf/partition/``, with its defaults, and some others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=60_000)
    wanted = parser.parse_args()
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, wanted.samples)
    ids = random.integers(0, wanted.clients, wanted.samples)
    pixels = torch.randint(0, 256, (wanted.samples, 1, 28, 28), dtype=torch.uint8)
    facts: Facts = {"ids": lambda: ids, "pixels": lambda: pixels}
    names = sorted(f.stem for f in (CONFIG_DIR / "partition").glob("*.yaml"))
    cases = [(name, "") for name in names if name not in ("from_file", "own", "size")]
    cases += [("size", f"partition.sizes={[wanted.samples // wanted.clients] * wanted.clients}")]
    cases += [("dirichlet", f"partition.alpha={alpha}") for alpha in (1.0, 0.1)]
    cases += [("inner_dirichlet", "partition.alpha=0.1")]
    title = f"{wanted.samples} labels, {wanted.clients} clients"
    table = Table("partition", "seconds", "", title=title)
    for name, override in sorted(cases):
        component = compose([f"partition={name}", *[override] * bool(override)]).partition
        clients = None if name == "grouped_natural" else wanted.clients
        arguments = override.removeprefix("partition.") if name != "size" else ""
        seconds, refusal = measure(component, labels, clients, facts)
        table.add_row(f"{name} {arguments}", f"{seconds:.3f}", refusal)
    Console(width=150).print(table)


def measure(
    component: Component, labels: Any, clients: int | None, facts: Facts
) -> tuple[float, str]:
    """Median seconds over seeds, the checks among them, and why it was refused."""
    taken, refusal = [], ""
    for seed in range(REPEATS):
        start = time.perf_counter()
        try:
            make_shares(component, labels, 10, clients, seed, facts)
        except ConfigError as error:
            refusal = str(error)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken)), refusal


if __name__ == "__main__":
    main()
