"""Peak memory of a simulation, over all its processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fedwsa.descendants import usage


def fleet(clients: int, sampled: int, samples: int) -> list[str]:
    """Overrides of a run in which only the number of clients matters.

    Parameters
    ----------
    sampled
        How many of them train in a round.
    samples
        Of all together, 8 × 8 pixels.
    """
    return [
        f"clients.count={clients}",
        f"clients.fraction={sampled / clients}",
        *("partition=iid", "dataset._target_=experiments.bench.workloads.random_images"),
        *(f"+dataset.samples={samples}", "+dataset.channels=1", "+dataset.side=8"),
        *("model=mlp", "local.epochs=1", "strategy.args.fraction_evaluate=0.0"),
    ]


def peak_memory(words: Sequence[str], folder: Path, cache: Path) -> float:
    """Peak in MB of all processes of a run."""
    overrides = [*words, f"cache_dir={cache}", f"hydra.run.dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedwsa", *overrides],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, usage(process.pid).memory)
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(f"fedwsa {' '.join(overrides)} failed")
    return peak
