"""Our two apps as a deployment has them, with contexts in this process."""

from __future__ import annotations

from flwr.app import Context, RecordDict

import clients.app
from tests.given.fedwsa import Nodes


class Loopback(Nodes):
    """A grid that hands each message to the ClientApp, with a context kept for each node."""

    def __init__(self, count: int, run_config: dict) -> None:
        super().__init__(count)
        self.contexts = {
            node: context({"partition-id": node - 1}, run_config) for node in self.get_node_ids()
        }

    def send_and_receive(self, messages, *, timeout=None):
        return [
            clients.app.app(m, self.contexts[m.metadata.dst_node_id]) for m in list(messages)[::-1]
        ]


def context(node_config: dict, run_config: dict) -> Context:
    return Context(1, 1, node_config, RecordDict(), run_config)
