"""MOON, the server half of :class:`fedwsa.algorithms.moon.client.Moon`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from pydantic import NonNegativeFloat, PositiveFloat

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.memory.server import Remembering
from fedwsa.algorithms.moon.client import require_classifier
from fedwsa.algorithms.run_facts import RunFacts
from fedwsa.algorithms.traits import Traits
from fedwsa.config.blame import blaming
from fedwsa.config.component import ConfigError
from fedwsa.models import blank_inputs
from fedwsa.wire.names import MOON_TEMPERATURE, MOON_WEIGHT, NUM_EXAMPLES


class Moon(Remembering):
    """Federated averaging of clients that train with the model-contrastive loss.

    Source: arXiv 2103.16257.

    Parameters
    ----------
    mu
        Weight of the contrastive loss; zero is FedAvg.
    temperature
        τ.
    sampling
        As for Flower's FedAvg.
    """

    traits: ClassVar[Traits] = replace(Remembering.traits, averages_by=NUM_EXAMPLES, requires=True)

    def __init__(
        self, mu: NonNegativeFloat, temperature: PositiveFloat, **sampling: Unpack[Sampling]
    ) -> None:
        if mu < 0 or temperature <= 0:
            raise ValueError(
                f"mu must be zero or above, temperature above; got {mu}, {temperature}"
            )
        super().__init__(**sampling)
        self.mu, self.temperature = mu, temperature

    def require(self, run: RunFacts) -> None:
        """Refuse to contrast what goes into the classifier of a model that has none to tap.

        Raises
        ------
        ConfigError
            Also where the model, which is asked for an answer, raises anything.
        """
        if not self.mu:
            return
        for model in run.models.values():
            with blaming(ConfigError, "strategy: ", kinds=False):
                require_classifier(model, blank_inputs(run.example_shape, 2))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Announce weight and temperature."""
        config[MOON_WEIGHT] = float(self.mu)
        config[MOON_TEMPERATURE] = float(self.temperature)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and note whose last models are those of this round."""
        return super().aggregate_train(server_round, self.accept(server_round, replies))
