"""Nodes that answer in this process, and what they answer."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import nn

from fedwsa import ScopeAlignment
from fedwsa.models import exchange
from fedwsa.wire import messages

LAYERS = ["0.weight", "2.weight"]


class Nodes(Grid):
    """A grid that only knows who is there: what configure_train asks for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def get_node_ids(self):
        return list(range(1, self.count + 1))

    def _unused(self, *args, **kwargs):
        raise AssertionError("a strategy sends nothing by itself")

    run = property(_unused)
    set_run = create_message = push_messages = pull_messages = send_and_receive = _unused


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def arrays_of(model: nn.Module) -> ArrayRecord:
    return messages.to_arrays(exchange.travelling_state(model))


def answer(message: Message, model: nn.Module, examples: int, **extra: float) -> Message:
    """What a client sends whose training ended with ``model``."""
    alignment = ScopeAlignment(model, message.content)
    metrics = MetricRecord({"num-examples": examples, "loss": 0.5, **alignment.end(), **extra})
    content = RecordDict({"arrays": arrays_of(model), "metrics": metrics})
    return Message(content, reply_to=message)


def content(strength: float = 1.0, names: list[str] | None = None, **config) -> dict:
    """A message's content as plain mappings: an objective needs no more of Flower."""
    count = len(names or LAYERS)
    return {
        "config": {
            "wsa-layers": names or LAYERS,
            "wsa-strength": strength,
            "wsa-reduction": "layer",
            "wsa-fusion": "moments",
            "wsa-floor": 1e-4,
            **config,
        },
        "wsa-target": {"mean": [0.1] * count, "variance": [0.04] * count},
    }
