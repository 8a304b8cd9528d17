"""What Fisher information costs: 1000 samples of the CNN of 1.6 M parameters, in forward-backwards.

Usage: ``python -m experiments.bench.fisher_cost [--samples N] [--repeats N] [--threads N]``

Both sides run in one process, in turn, on the same images: the diagonal Fisher information, and an
ordinary forward and backward pass over them in batches of 50; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.bench.timing import calls_in_turn
from fedwsa.merge.fisher_information import fisher_information
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.seeding import generator

BATCH = 50
TARGET = 6.0
"""So many forward-backward passes it may cost."""


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each side")
    parser.add_argument("--threads", type=int, default=1, help="as a simulated client has")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = build_model(compose(["model=cnn_pfl"]).model, ImageShape(3, 32, 32), 10, seed=0)
    times = measure(model, arguments.samples, arguments.repeats)
    plain = times["forward and backward"]
    title = f"cnn_pfl, {arguments.samples} samples"
    table = Table("", "seconds", f"ratio (≤ {TARGET:g})", title=title)
    for name, seconds in times.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / plain:.2f}")
    Console().print(table)


def measure(model: nn.Module, samples: int, repeats: int) -> dict[str, float]:
    """Median seconds of each pass over all samples."""
    torch.manual_seed(0)
    images, labels = torch.randn(samples, 3, 32, 32), torch.randint(0, 10, (samples,))
    sides: dict[str, Callable[[int], object]] = {
        "forward and backward": lambda n: _pass(model, images[:n], labels[:n]),
        "observed labels": lambda n: fisher_information(model, images[:n], labels[:n]),
        "drawn labels": lambda n: fisher_information(
            model, images[:n], random=generator(0, "bench")
        ),
    }
    for side in sides.values():
        side(min(samples, BATCH))
    return calls_in_turn({name: partial(side, samples) for name, side in sides.items()}, repeats, 0)


def _pass(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    model.eval()  # as the other side
    for start in range(0, len(labels), BATCH):
        batch = slice(start, start + BATCH)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(cross_entropy(model(images[batch]), labels[batch]))


if __name__ == "__main__":
    main()
