"""What local objectives cost: a local SGD step of VGG11 at batch 64, with and without each.

Usage: ``python -m experiments.bench.objective_cost [--steps N] [--threads N]``

All sides run in one process, in turn, on the same images; the ratio is that of the median times.
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
from fedwsa.algorithms.feddyn.client import FedDyn
from fedwsa.algorithms.fedprox.client import Proximal
from fedwsa.algorithms.objective import LocalRun, Objective
from fedwsa.algorithms.scaffold.client import Scaffold
from fedwsa.algorithms.wsa.client import ScopeAlignment
from fedwsa.algorithms.wsa.instruction import ScopeInstruction
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.scope.weight_scope import WeightScope
from fedwsa.wire.content import Content
from fedwsa.wire.names import DYN_ALPHA, PROXIMAL_MU, SCAFFOLD_CONTROL

BATCH = 64
TARGET = 1.10
"""A step may cost so much of FedAvg's."""


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=1, help="as a simulated client has")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = build_model(compose(["model=vgg11"]).model, ImageShape(3, 32, 32), 10, seed=0)
    times = measure(model, arguments.steps)
    table = Table("vgg11, batch 64", "ms a step", f"ratio (≤ {TARGET:.2f})")
    for name, seconds in times.items():
        table.add_row(name, f"{1e3 * seconds:.1f}", f"{seconds / times['FedAvg']:.3f}")
    Console().print(table)


def instructions(model: nn.Module) -> dict[str, tuple[type[Objective], Content]]:
    """Each objective with what its server would send."""
    scope = WeightScope.measure(model.state_dict())
    control = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    return {
        "WSA": (ScopeAlignment, ScopeInstruction(scope, strength=1e-6).to_records()),
        "FedProx": (Proximal, {"config": {PROXIMAL_MU: 1e-6}}),
        "SCAFFOLD": (Scaffold, {SCAFFOLD_CONTROL: control}),
        "FedDyn": (FedDyn, {"config": {DYN_ALPHA: 1e-6}}),
    }


def measure(model: nn.Module, steps: int) -> dict[str, float]:
    """Median seconds of a step without and with each objective."""
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

    def stepping(kind: tuple[type[Objective], Content] | None) -> Callable[[], None]:
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=1e-4, momentum=0.9, fused=True)
        objectives = [] if kind is None else [kind[0](own, kind[1], LocalRun(1e-4, 0.9))]

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(own(images), labels))
            for objective in objectives:
                objective.add_gradient()
            optimizer.step()

        return step

    kinds = {"FedAvg": None, **instructions(model)}
    return calls_in_turn({name: stepping(kind) for name, kind in kinds.items()}, steps)


if __name__ == "__main__":
    main()
