"""Who is asked to train, where that is not left to the strategy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from flwr.app import MetricRecord

from fedwsa import seeding
from fedwsa.config.blame import blaming
from fedwsa.config.component import ConfigError, check_arguments, locate
from fedwsa.fleet.samplers import Known, uniform
from fedwsa.schema.config import Config
from fedwsa.wire import messages
from fedwsa.wire.names import TRAIN_LOSS
from server.systems import Systems

Draw = Callable[[int, Known], Sequence[int]]


def leaves_it_to_the_strategy(config: Config) -> bool:
    """Whether the run's sampler is the uniform one, which strategies of Flower's have."""
    return locate(config.sampler.target, "sampler._target_") is uniform


def open_sampler(config: Config) -> Draw:
    """The sampler of a run, its keys bound.

    Raises
    ------
    ConfigError
        If it cannot be found, or a key is wrong.
    """
    component = config.sampler
    function = locate(component.target, "sampler._target_")
    keys = check_arguments(function, component.arguments, "sampler", 2, {})

    def draw(count: int, known: Known) -> Sequence[int]:
        with blaming(ConfigError, f"sampler: round {known.number}: "):
            chosen = list(function(count, known, **keys))
        if len({*chosen}) < len(chosen) or not {*chosen} <= {*known.there}:
            raise ConfigError(
                f"sampler: round {known.number}: {component.name} must choose clients that are "
                "there, each once"
            )
        return chosen

    return draw


class Cohorts:
    """The choice of each round, and what it goes by.

    Parameters
    ----------
    config
        The run.
    systems
        The simulated devices.
    """

    def __init__(self, config: Config, systems: Systems) -> None:
        self._config, self._systems, self._draw = config, systems, open_sampler(config)
        self._losses: dict[int, float] = {}
        self._answered: dict[int, int] = {}

    def state(self) -> dict[str, Any]:
        """What is remembered."""
        return {"losses": dict(self._losses), "answered": dict(self._answered)}

    def begin(self, state: Mapping[str, Any]) -> None:
        """Go on from what was remembered; empty: from nothing."""
        self._losses = dict(state.get("losses", {}))
        self._answered = dict(state.get("answered", {}))

    def note(self, number: int, answers: Mapping[int, MetricRecord]) -> None:
        """Remember what clients reported in a round."""
        for client, metrics in answers.items():
            self._losses[client] = messages.number(metrics, TRAIN_LOSS)
            self._answered[client] = number

    def choose(self, number: int, there: Collection[int], count: int) -> Sequence[int]:
        """So many of those that are there, in the order in which they are asked."""
        seed = self._config.seed

        def draw(of_the_run: bool) -> torch.Generator:
            return seeding.generator(seed, "sampler", *([] if of_the_run else [number]))

        known = Known(
            number,
            sorted(there),
            self._config.clients.count,
            self._systems.examples,
            self._systems.seconds,
            self._losses,
            self._answered,
            draw,
        )
        return self._draw(count, known)
