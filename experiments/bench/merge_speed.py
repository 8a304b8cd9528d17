"""Seconds and memory of merging two networks of 11.7 million parameters from files.

OMP_NUM_THREADS=1 python -m experiments.bench.merge_speed

Each operator runs in a process of its own, so that its peak is its own: reading both files tensor
by tensor, merging, writing. Memory is counted in sizes of one model, above what the process had
before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from experiments.merge.files import ModelFile
from experiments.merge.methods import Ingredients, merge, method_of
from fedwsa.models.torchvision_loader import torchvision
from fedwsa.runfolder.tensors import write_tensors

METHODS = ["average", "wsa", "range", "percentile", "stages", "task_arithmetic", "ties"]


def memory_now() -> float:
    """MB that this process has; files that are mapped are not counted."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def one(name: str, folder: Path) -> None:
    """Merge once, and print what it took."""
    files = [ModelFile(folder / f"{k}.safetensors") for k in range(3)]
    highest, before = _watch()
    start = time.perf_counter()
    merged = merge(method_of(name), Ingredients(files[:2], base=files[2]))
    middle = time.perf_counter()
    write_tensors(folder / "out.safetensors", merged, {}, "out")
    end = time.perf_counter()
    print(json.dumps([middle - start, end - middle, highest() - before]))


def _watch() -> tuple[Callable[[], float], float]:
    """A function that ends the watch and says the peak, and what there was before."""
    seen, stop = [memory_now()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            seen.append(memory_now())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def highest() -> float:
        stop.set()
        thread.join()
        return max(seen)

    return highest, seen[0]


def main() -> None:
    """Make the files, run each operator, print a table."""
    if len(sys.argv) == 3:
        one(sys.argv[1], Path(sys.argv[2]))
        return
    table = Table("operator", "merging, s", "writing, s", "memory, models", box=None)
    with tempfile.TemporaryDirectory() as name:
        folder, megabytes = Path(name), 0.0
        for k in range(3):
            torch.manual_seed(k)
            network = torchvision.models.resnet18().state_dict()
            save_file(network, folder / f"{k}.safetensors")
            megabytes = sum(t.numel() * t.element_size() for t in network.values()) / 2**20
        for method in METHODS:
            command = [sys.executable, "-m", "experiments.bench.merge_speed", method, name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            merging, writing, memory = json.loads(done.stdout)
            row = f"{merging:.2f}", f"{writing:.2f}", f"{memory / megabytes:.1f}"
            table.add_row(method, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
