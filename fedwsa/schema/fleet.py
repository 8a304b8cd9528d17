"""The fleet of a run: which size, device and conditions each client has."""

from __future__ import annotations

from dataclasses import dataclass

from fedwsa.fleet import size_rules, systems
from fedwsa.models import InputShape
from fedwsa.schema.conditions import Conditions, draw_conditions
from fedwsa.schema.config import Config


@dataclass(frozen=True)
class Fleet:
    """What follows from a configuration and its seed for each client, the same at both sides.

    Attributes
    ----------
    config : Config
        The run.
    """

    config: Config

    def sizes(self, shape: InputShape, classes: int) -> list[str]:
        """The size of each client; ``shape`` and ``classes`` are needed for what models cost."""
        config, clients = self.config, self.config.clients
        if clients.sizes != size_rules.SPEED:
            return size_rules.by_wish(clients.sizes, clients.count, config.seed)
        costs = {
            name: size_rules.model_cost(config.model_of(name), shape, classes)
            for name in config.size_names
        }
        return size_rules.by_speed(costs, [self.speed(k) for k in range(clients.count)])

    def speed(self, client: int) -> float:
        """How fast a client's device is; one is the median, or what carries the largest size."""
        clients = self.config.clients
        classes = clients.speeds if clients.sizes == size_rules.SPEED else [1.0]
        return systems.speed(self.config.seed, client, clients.speed_spread, classes)

    def device(self, client: int) -> systems.Device:
        """A client's device: a slow one computes and communicates slowly."""
        clients, factor = self.config.clients, self.speed(client)
        return systems.Device(clients.flops_per_second * factor, clients.bytes_per_second * factor)

    def conditions(self, client: int) -> Conditions:
        """Rate, decay, batches, epochs and optimiser of a client."""
        return draw_conditions(self.config.local, self.config.seed, client)
