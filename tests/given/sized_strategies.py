"""Hand-made models and messages of several sizes."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

from fedwsa.wire import messages
from tests.given.fedwsa import Nodes


def arrays(**values: object) -> ArrayRecord:
    return messages.to_arrays({k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()})


def plain(record: ArrayRecord) -> dict[str, list]:
    return {k: a.numpy().tolist() for k, a in record.items()}


def sent(strategy: FedAvg, start: ArrayRecord, number: int = 1, nodes: int = 2) -> list[Message]:
    grid, config = Nodes(nodes), ConfigRecord()
    found = strategy.configure_train(number, start, config, grid)
    return sorted(found, key=lambda m: m.metadata.dst_node_id)


def alternating(node: int) -> str:
    """Node 1 is large, node 2 small, …"""
    return "L" if node % 2 else "S"
