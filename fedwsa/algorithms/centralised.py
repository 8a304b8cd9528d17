"""Training on the pooled data: the reference that federated training is measured by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedwsa.algorithms.traits import Traits
from fedwsa.wire.names import NUM_EXAMPLES, POOLED, SERVER_ROUND


class Centralised(FedAvg):
    """One client trains on the training samples of all, for a simulation.

    In each round it makes as many steps as a cohort of FedAvg would all together: the local
    epochs over ``fraction_train`` of the pooled samples, drawn anew, under the usual local
    conditions. It shows what the model and the settings can reach, and so whether a federated
    baseline is broken.

    Parameters
    ----------
    fraction_train, fraction_evaluate, min_evaluate_nodes, min_available_nodes
        As for Flower's FedAvg.
    """

    traits: ClassVar[Traits] = Traits(
        averages_by=NUM_EXAMPLES,
        no_scopes="there is one model, trained in one place",
        on_devices=False,  # nobody drops out, is late or sends anything
    )

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
    ) -> None:
        super().__init__(
            fraction_train,
            fraction_evaluate,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the first node to train on the pool."""
        config[SERVER_ROUND] = server_round
        config[POOLED] = float(self.fraction_train)
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return [Message(content, next(iter(grid.get_node_ids())), MessageType.TRAIN)]
