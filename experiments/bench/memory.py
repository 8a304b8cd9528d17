"""Peak memory of a simulation, over all its processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from experiments.commands.descendants import usage


def peak_memory(clients: int, folder: Path) -> float:
    """Peak in MB of a run with so many clients, a hundred of them a round."""
    overrides = [
        f"clients.count={clients}",
        f"clients.fraction={100 / clients}",
        *("partition=iid", "dataset._target_=experiments.bench.workloads.random_images"),
        *("+dataset.samples=50000", "+dataset.channels=1", "+dataset.side=8"),
        *("model=mlp", "rounds=5", "local.epochs=1", "strategy.args.fraction_evaluate=0.0"),
        f"cache_dir={folder / 'cache'}",
        f"hydra.run.dir={folder / f'memory-{clients}'}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.commands.start", *overrides],
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
