"""Two thousand rounds: nothing grows."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedwsa.descendants import Usage, usage
from tests.given.processes import started

ROUNDS, WARM = 2000, 300


@pytest.mark.slow
def test_memory_descriptors_and_threads_of_all_processes_stay(tmp_path: Path) -> None:
    command = [
        *(
            sys.executable,
            "-m",
            "experiments.commands.start",
            f"rounds={ROUNDS}",
            "clients.count=4",
        ),
        *("clients.fraction=0.5", "local.epochs=1", "model.width=0.1", "runtime.workers=1"),
        *("evaluation.every=100", "evaluation.clients_every=500", "wsa=on"),
        *(f"cache_dir={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}"),
    ]
    seen: dict[int, Usage] = {}
    with started(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(1.0)
            if (number := rounds_over(tmp_path / "run")) >= WARM:
                seen[number] = usage(process.pid)
        assert process.returncode == 0
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert len(history) == ROUNDS
    assert history["failed"].isna().all()
    kept = [seen[number] for number in sorted(seen)][:-2]  # at the end pictures are drawn
    assert len(kept) >= 10
    memory = np.array([u.memory for u in kept])
    early, late = np.median(memory[: len(kept) // 3]), np.median(memory[-len(kept) // 3 :])
    print(f"{ROUNDS} rounds: {early:.0f} MB in the first third, {late:.0f} MB in the last")
    assert late <= 1.05 * early, f"{early:.0f} MB became {late:.0f} MB"
    # A thread or descriptor may come and go; one more each hundred rounds would be 17.
    for name in ("descriptors", "threads"):
        counts = np.array([getattr(u, name) for u in kept])
        assert np.median(counts[-3:]) <= np.median(counts[:3]) + 2, name


def rounds_over(folder: Path) -> int:
    try:
        return len((folder / "history.csv").read_bytes().splitlines()) - 1
    except OSError:
        return 0
