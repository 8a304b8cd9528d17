"""What WAVE costs: making weights, a step on the scalers, and the file for a family of sizes.

Usage: ``python -m experiments.bench.wave_cost [--steps N] [--threads N]``

For the transformer of 6 blocks of 192 units: the time to materialise all layers, and a training
step on its scalers beside an ordinary step of the same network, both in one process, in turn.
For a family of nine sizes: the bytes of the learngene file beside those of the nine networks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.bench.timing import calls_in_turn
from fedwsa import seeding
from fedwsa.config.component import Component
from fedwsa.data.examples import Examples
from fedwsa.data.images import ImageData
from fedwsa.learngene import Wave, wave
from fedwsa.learngene.base import Task
from fedwsa.learngene.fit import Lesson, Recipe
from fedwsa.models import build_model
from fedwsa.models.architecture import architecture_of, outline
from fedwsa.models.files import save_network
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose

BATCH, IMAGE, CLASSES = 64, ImageShape(3, 32, 32), 10
WIDTHS, DEPTHS = (0.25, 0.5, 1.0), (2, 4, 6)


def transformer(width: float = 1.0, depth: int = 6) -> Component:
    """The network of 192·width units."""
    return compose(["model=vit", f"model.width={width}", f"model.depth={depth}"]).model


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table("WAVE", "measured", "at most")
    table.add_row(
        "materialise 6 x 192, ms", f"{1e3 * materialise_seconds(arguments.steps):.1f}", "20"
    )
    plain, scalers = step_seconds(arguments.steps)
    table.add_row("step on scalers / step", f"{scalers / plain:.2f}", "1.6")
    gene, networks = family_bytes([transformer(w, d) for w in WIDTHS for d in DEPTHS])
    table.add_row("file / nine networks", f"{gene / networks:.3f}", "0.200")
    Console().print(table)


def templated() -> nn.Module:
    """The network with templates, 16 of a group."""
    model = build_model(transformer(), IMAGE, CLASSES, seed=0)
    known = architecture_of(transformer())
    shapes = wave.template_shapes([outline(transformer(w), IMAGE, CLASSES) for w in WIDTHS], known)
    random = seeding.generator(0, "bench")
    wave.attach(model, known, wave.random_templates(model, known, shapes, 16, random))
    return model


def materialise_seconds(times: int) -> float:
    """Median seconds for all layers."""
    seconds = []
    for _ in range(times):
        model = templated()
        start = time.perf_counter()
        wave.materialise(model)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def step_seconds(steps: int) -> tuple[float, float]:
    """Median seconds of an ordinary step, and of one on the scalers."""
    ordinary = build_model(transformer(), IMAGE, CLASSES, seed=0)
    images, labels = torch.randn(BATCH, *IMAGE), torch.randint(0, CLASSES, (BATCH,))

    def stepping(model: nn.Module) -> Callable[[], None]:
        chosen = list(wave.scalers_of(model).values()) or list(model.parameters())
        optimizer = torch.optim.AdamW(chosen, lr=1e-5, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(model(images), labels), inputs=chosen)
            optimizer.step()

        return step

    sides = {"ordinary": stepping(ordinary), "scalers": stepping(templated())}
    times = calls_in_turn(sides, steps, warm_up=2)
    return times["ordinary"], times["scalers"]


def family_bytes(family: Sequence[Component]) -> tuple[int, int]:
    """Bytes of the learngene file for a family, and of the files of its networks."""
    images = Examples(torch.zeros(1, *IMAGE, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    data = ImageData(images, images, CLASSES, (0.5,) * 3, (0.25,) * 3)
    task = Task(family[-1], family, IMAGE, CLASSES, Lesson(images, data), Recipe(0))
    with tempfile.TemporaryDirectory() as folder:
        gene = Path(folder) / "wave.safetensors"
        Wave().learn(task).save(gene)
        total = 0
        for size in family:
            file = Path(folder) / "network.safetensors"
            state = build_model(size, IMAGE, CLASSES, seed=0).state_dict()
            save_network(file, state, size, data)
            total += file.stat().st_size
        return gene.stat().st_size, total


if __name__ == "__main__":
    main()
