"""Clients whose losses are quadratics, so that what federated algorithms reach is known by hand.

Client i minimises a_i/2·‖w − b_i‖², with gradient a_i(w − b_i); together they have their minimum
at Σ a_i b_i / Σ a_i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedwsa.algorithms.feddyn.client import FedDyn
from fedwsa.algorithms.fednova.client import FedNova
from fedwsa.algorithms.fedprox.client import Proximal
from fedwsa.algorithms.memory import client as memory
from fedwsa.algorithms.objective import LocalRun, Objective
from fedwsa.algorithms.scaffold.client import Scaffold
from fedwsa.models import exchange
from fedwsa.simulation import run_simulation
from fedwsa.simulation.cluster import connect
from fedwsa.wire import messages

A, B = (1.0, 3.0, 0.5), ((1.0, 0.0), (0.0, 2.0), (-1.0, 4.0))
JOINT = np.average(np.array(B), axis=0, weights=A)
BEGIN = (2.0, -1.0)
OBJECTIVES: tuple[type[Objective], ...] = (Proximal, Scaffold, FedDyn, FedNova)


class Point(nn.Module):
    def __init__(self, values: tuple[float, ...] = BEGIN) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


@dataclass(frozen=True)
class Descent:
    """Steps of SGD, a number for each client."""

    steps: Sequence[int]
    lr: float = 0.1
    momentum: float = 0.0

    def __call__(self, model: Point, client: int, objectives: Sequence[Objective]) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)
        for _ in range(self.steps[client]):
            model.w.grad = gradient(model, client)
            for objective in objectives:
                objective.add_gradient()
            optimizer.step()


@dataclass(frozen=True)
class Exact:
    """Newton's step: where gradient and curvature of a quadratic are known, its minimum."""

    curvature: float = 0.0  # that the objectives add to a_i
    lr: float = 1.0
    momentum: float = 0.0

    def __call__(self, model: Point, client: int, objectives: Sequence[Objective]) -> None:
        model.w.grad = gradient(model, client)
        for objective in objectives:
            objective.add_gradient()
        with torch.no_grad():
            model.w -= model.w.grad / (A[client] + self.curvature)


Training = Callable[[Point, int, Sequence[Objective]], None]


def gradient(model: Point, client: int) -> torch.Tensor:
    return A[client] * (model.w.detach() - torch.tensor(B[client], dtype=torch.float64))


def app(
    training: Training,
    examples: Sequence[int] = (10, 10, 10),
    more: Sequence[type[Objective]] = (),
) -> ClientApp:
    """Clients that train so, and report what they keep as ``control`` where it is SCAFFOLD's."""
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        content = {
            k: messages.to_tensors(r) if isinstance(r, ArrayRecord) else r
            for k, r in message.content.items()
        }
        kept = {k: messages.to_tensors(r) for k, r in context.state.array_records.items()}
        state = memory.recall(message.content, kept)
        begun = dict(state)
        local = LocalRun(training.lr, training.momentum, state, examples[client])
        model = Point()
        exchange.load_travelling(model, messages.to_tensors(message.content["arrays"]))
        objectives = [
            kind(model, content, local) for kind in (*OBJECTIVES, *more) if kind.asked(content)
        ]
        training(model, client, objectives)
        metrics = MetricRecord({"num-examples": examples[client]})
        records = {}
        for objective in objectives:
            metrics.update(objective.end())
            records |= {k: messages.to_arrays(t) for k, t in objective.records().items()}
        for name, tensors in memory.keep(message.content, begun, state).items():
            context.state[name] = messages.to_arrays(tensors)
        if "scaffold" in state:
            metrics["control"] = state["scaffold"]["w"].tolist()
        arrays = messages.to_arrays(exchange.travelling_state(model))
        return Message(
            RecordDict({"arrays": arrays, "metrics": metrics, **records}), reply_to=message
        )

    return made


def begin() -> ArrayRecord:
    return messages.to_arrays(exchange.travelling_state(Point()))


def run(
    strategy: Strategy, client_app: ClientApp, workers: int, rounds: int
) -> tuple[list[np.ndarray], list[MetricRecord]]:
    """Rounds in the engine: the model after each, and the averaged metrics."""
    found: list[np.ndarray] = []
    metrics: list[MetricRecord] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        def note(number: int, arrays: ArrayRecord) -> MetricRecord:
            found.append(arrays["w"].numpy().copy())
            return MetricRecord()

        result = strategy.start(grid, begin(), num_rounds=rounds, evaluate_fn=note)
        metrics.extend(result.train_metrics_clientapp.values())

    connect(None)
    run_simulation(server, client_app, 3, workers=workers, keep_workers=True)
    return found[1:], metrics  # the first is that of the beginning
