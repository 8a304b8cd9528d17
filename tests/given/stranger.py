"""A strategy as somebody else might write it, known to the project by its path alone."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg


class Halfway(FedAvg):
    """Moves the model only a part of the way to the average."""

    def __init__(self, step: float, min_available_nodes: int = 2) -> None:
        super().__init__(min_available_nodes=min_available_nodes)
        self.step = step

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.before = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if not 0 < self.step <= 1:
            raise ArithmeticError(f"a step of {self.step:g} leads nowhere")
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        moved = {
            k: Array(b.numpy() + self.step * (arrays[k].numpy() - b.numpy()))
            for k, b in self.before.items()
        }
        return ArrayRecord(moved), metrics
