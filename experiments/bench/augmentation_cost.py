"""What weight augmentation costs: a local SGD step with and without each transform.

Usage: ``python -m experiments.bench.augmentation_cost [--steps N] [--threads N] [--model NAME]``

At batch 32 on images of 3x32x32. All sides run in one process, in turn; the ratio is that of the
median times.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.bench.timing import calls_in_turn
from fedwsa.models import build_model
from fedwsa.models.augment import ShadowWeights, Transform
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose

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
        model = build_model(compose([f"model={name}"]).model, ImageShape(3, 32, 32), 10, seed=0)
        times = measure(model, arguments.steps)
        ratios = [f"{times[transform] / times['off']:.3f}" for transform in TRANSFORMS]
        table.add_row(name, f"{1e3 * times['off']:.1f}", *ratios)
    Console().print(table)


def measure(model: nn.Module, steps: int) -> dict[str, float]:
    """Median seconds of a step without and with each transform."""
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

    def stepping(kind: Transform | None) -> Callable[[], None]:
        own = copy.deepcopy(model)
        trained = own if kind is None else ShadowWeights(own, kind, torch.Generator())
        trained.train()
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-4, momentum=0.9, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(trained(images), labels))
            optimizer.step()

        return step

    wanted: tuple[Transform | None, ...] = (None, *TRANSFORMS)
    return calls_in_turn({kind or "off": stepping(kind) for kind in wanted}, steps)


if __name__ == "__main__":
    main()
