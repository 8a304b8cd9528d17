"""What weight augmentation costs: a local SGD step with and without each transform.

Usage: ``python -m experiments.bench.augmentation_cost [--steps N] [--threads N] [--model NAME]``

At batch 32 on images of 3x32x32. All sides run in one process, in turn; the ratio is that of the
median times.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

from fedwsa.augment import ShadowWeights, Transform
from fedwsa.config import compose
from fedwsa.models import build_model

BATCH = 32
TRANSFORMS: tuple[Transform, ...] = ("translate", "crop", "choice")


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=1, help="as a simulated client has")
    parser.add_argument("--model", nargs="+", default=["cnn", "vgg8", "resnet20"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table("model", "ms a step", *TRANSFORMS)
    for name in arguments.model:
        model = build_model(compose([f"model={name}"]).model, (3, 32, 32), 10, seed=0)
        times = {side: statistics.median(t) for side, t in measure(model, arguments.steps).items()}
        ratios = [f"{times[transform] / times['off']:.3f}" for transform in TRANSFORMS]
        table.add_row(name, f"{1e3 * times['off']:.1f}", *ratios)
    Console().print(table)


def measure(model: nn.Module, steps: int) -> dict[str, list[float]]:
    """Seconds of each step without and with each transform, taken in turn after a warm-up."""
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    sides: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {}
    wanted: tuple[Transform | None, ...] = (None, *TRANSFORMS)
    for kind in wanted:
        own = copy.deepcopy(model)
        trained = own if kind is None else ShadowWeights(own, kind, torch.Generator())
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-4, momentum=0.9, fused=True)
        sides[kind or "off"] = trained.train(), optimizer
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for i in track(range(-3, steps), "Timing"):
        for name in order:
            trained, stepper = sides[name]
            start = time.perf_counter()
            stepper.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(trained(images), labels))
            stepper.step()
            if i >= 0:
                times[name].append(time.perf_counter() - start)
        order = [*order[1:], order[0]]  # none always runs behind the same other
    return times


if __name__ == "__main__":
    main()
