"""A run of which a client fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

import clients.app
from fedwsa.schema.config import Config


def faulty(config: Config, faults: dict[int, str]) -> ClientApp:
    """Our ClientApp, in which some clients fail in one way each when they train."""
    honest, app = clients.app.build(config), ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return honest(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return honest(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        fault = faults.get(int(context.node_config["partition-id"]))
        if fault == "raise":
            raise RuntimeError(f"the battery of {ray.util.get_node_ip_address()} is empty")
        reply = honest(message, context)
        arrays: Any = {k: a.numpy().copy() for k, a in reply.content["arrays"].items()}
        if fault == "nan":
            arrays["hidden0.bias"][0] = np.nan
        elif fault == "shape":
            arrays["hidden0.bias"] = arrays["hidden0.bias"][:-1]
        elif fault == "examples":
            reply.content["metrics"]["num-examples"] = 0
        elif fault == "loss":
            del reply.content["metrics"]["train_loss"]
        reply.content["arrays"] = ArrayRecord({k: _array(a) for k, a in arrays.items()})
        return reply

    return app


def _array(values: np.ndarray) -> Any:
    from flwr.app import Array

    return Array(np.ascontiguousarray(values))
