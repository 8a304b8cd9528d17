"""What the WSA term costs: a local SGD step of VGG11 at batch 64, with and without it.

Usage: ``python -m experiments.bench.wsa_cost [--steps N] [--threads N]``

Both sides run in one process, in turn, on the same weights and images; the ratio is that of
the median times.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

from fedwsa.config import compose
from fedwsa.models import build_model
from fedwsa.scope import WeightScope, add_kl_gradient_, scoped_layers

BATCH = 64


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=1, help="as a simulated client has")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = build_model(compose(["model=vgg11"]).model, (3, 32, 32), 10, seed=0)
    times = measure(model, arguments.steps)
    plain, aligned = (1e3 * statistics.median(t) for t in times)
    table = Table("vgg11, batch 64", "ms a step", "ratio")
    table.add_row("SGD", f"{plain:.1f}", "1.000")
    table.add_row("SGD + WSA", f"{aligned:.1f}", f"{aligned / plain:.3f}")
    Console().print(table)


def measure(model: nn.Module, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each step without and with the term, taken in turn after a warm-up."""
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    state = model.state_dict()
    names = scoped_layers(state)
    layers = [model.get_parameter(n) for n in names]
    target = WeightScope.measure(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    times: tuple[list[float], list[float]] = ([], [])
    for i in track(range(-3, steps), "Timing"):
        for side in (0, 1) if i % 2 else (1, 0):  # neither always runs on a warm cache
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(model(images), labels))
            if side:
                gradients = [w.grad for w in layers if w.grad is not None]
                add_kl_gradient_(gradients, layers, target, strength=1e-6)
            optimizer.step()
            if i >= 0:
                times[side].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
