"""The learning rates of a run's rounds, and the server's own, which its strategy has."""

from __future__ import annotations

from flwr.serverapp.strategy import Strategy

from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.config.component import ConfigError
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.config import Config
from fedwsa.schema.schedule import factors


class Rates:
    """What clients and server learn at, round by round.

    Parameters
    ----------
    config
        The run.
    strategy
        As it was made: before a checkpoint gives it back what it remembers.

    Raises
    ------
    ConfigError
        If a schedule gives a rate that is none, or the server's has none to change.
    """

    def __init__(self, config: Config, strategy: Strategy) -> None:
        self._config = config
        self._usual = Conditions.usual(config.local).lr
        rates = [(part, rate) for part in chain(strategy) if (rate := traits_of(part).rate)]
        self._of_server = rates[0] if rates else None
        self._base = getattr(*self._of_server) if self._of_server else None
        config.rate(1)  # all are looked at
        config.decay_rate(1)
        of_server = factors(config.server_schedule, config.rounds, "server_schedule")
        if self._base is None and set(of_server) != {1.0}:
            inner = [*chain(strategy)][-1]
            raise ConfigError(
                f"server_schedule: {type(inner).__name__} has no learning rate of its own; "
                "fedavgm, fedadam, fedyogi and fedadagrad have, and what names one in its traits"
            )

    def begin(self, number: int) -> tuple[float, float | None]:
        """Give the strategy its rate for a round; the clients' usual one, and the server's."""
        clients = self._usual * self._config.rate(number)
        if self._of_server is None or self._base is None:
            return clients, None
        own = self._base * self._config.server_rate(number)
        setattr(*self._of_server, own)
        return clients, own
