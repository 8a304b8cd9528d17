"""A small app of a stranger's, and messages for it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedwsa.simulation import run_simulation

CLIENTS = 6


def within(app: ClientApp, body: Callable[[Grid], None], clients: int = CLIENTS, **options) -> None:
    """Run ``body`` as a ServerApp, on the workers of the test before."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        body(grid)

    run_simulation(server, app, clients, **{"keep_workers": True, **options})


def client_app(behave: Callable[[int, Context], None] = lambda partition, context: None):
    """Adds the partition id to what it gets, and counts its trainings in its state."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        seen = context.state.get("seen", ConfigRecord({"count": 0}))["count"] + 1
        context.state["seen"] = ConfigRecord({"count": seen})
        behave(partition, context)
        weights = message.content["arrays"]["w"].numpy()
        weights += partition  # in place: the next client must not see it
        metrics = {"num-examples": partition + 1, "seen": seen, "pair": [1.0 * partition, 1.0]}
        content = {"arrays": ArrayRecord({"w": Array(weights)}), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    return app


def instructions(grid: Grid, values: float = 0.0) -> list[Message]:
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.full(3, values, np.float32))}),
            "config": ConfigRecord({"server-round": 1}),
        }
    )
    return [Message(content, node, MessageType.TRAIN) for node in sorted(grid.get_node_ids())]


def weights(replies: list[Message]) -> dict[int, float]:
    """By client, which answers 0 + its partition."""
    good = [r for r in replies if r.has_content()]
    return {r.metadata.src_node_id - 2: float(r.content["arrays"]["w"].numpy()[0]) for r in good}


def pulled(grid: Grid, ids: list[str]) -> list[Message]:
    """All replies to what was pushed; each can be fetched once."""
    replies, left, end = [], set(ids), time.monotonic() + 600
    while left and time.monotonic() < end:
        new = list(grid.pull_messages(left))
        left -= {reply.metadata.reply_to_message_id for reply in new}
        replies += new
        time.sleep(0.02)
    return replies


def sized_instructions(grid: Grid) -> list[Message]:
    """Clients 0, 3 get three weights, 1, 4 two, 2, 5 one."""
    contents = [
        RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(np.zeros(3 - i, np.float32))}),
                "config": ConfigRecord({"server-round": 1}),
            }
        )
        for i in range(3)
    ]
    nodes = sorted(grid.get_node_ids())
    return [Message(contents[i % 3], node, MessageType.TRAIN) for i, node in enumerate(nodes)]
