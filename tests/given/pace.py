"""A strategy that looks at single answers, for runs without rounds."""

from __future__ import annotations

from flwr.serverapp.strategy import FedAvg


class Plain(FedAvg):
    """FedAvg, of which nobody knows that it may be averaged at the workers; it can be stopped."""

    last = 1000

    def aggregate_train(self, server_round, replies):
        if server_round > self.last:
            raise RuntimeError("the power is off")
        return super().aggregate_train(server_round, replies)
