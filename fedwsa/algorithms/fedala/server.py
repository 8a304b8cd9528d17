"""FedALA, the server half of :class:`fedwsa.algorithms.fedala.client.AdaptiveLocalAggregation`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Unpack

from flwr.app import ArrayRecord, Message, MetricRecord
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.beside.server import Setting, Telling
from fedwsa.algorithms.fedala.client import AdaptiveLocalAggregation
from fedwsa.algorithms.memory.server import Remembering
from fedwsa.algorithms.traits import Traits
from fedwsa.wire.names import NUM_EXAMPLES


class FedALA(Telling, Remembering):
    """Federated averaging of clients that begin between the average and their own last models.

    Source: FedALA: Adaptive Local Aggregation for Personalized Federated Learning,
    arXiv 2212.01197.

    Parameters
    ----------
    layers
        p: how many of the highest layers are aggregated so; 0 is federated averaging.
    rate
        Of the learning of the parts; 0 is federated averaging.
    samples
        The share of a client's samples that they are learned on.
    untrained
        Names of the arrays that no client trains.
    sampling
        As for Flower's FedAvg.
    """

    settings: ClassVar[str] = AdaptiveLocalAggregation.settings
    traits: ClassVar[Traits] = replace(
        Remembering.traits,
        averages_by=NUM_EXAMPLES,
        wants=("untrained",),
        objectives=(AdaptiveLocalAggregation,),
    )

    def __init__(
        self,
        *,
        layers: NonNegativeInt,
        rate: NonNegativeFloat,
        samples: Annotated[float, Field(gt=0, le=1)],
        untrained: Iterable[str] = (),
        **sampling: Unpack[Sampling],
    ) -> None:
        if layers < 0 or rate < 0 or not 0 < samples <= 1:
            raise ValueError(
                "layers and rate must be zero or above, samples above zero and at most 1; "
                f"got {layers}, {rate}, {samples}"
            )
        super().__init__(**sampling)
        self.layers, self.rate, self.samples = layers, rate, samples
        self.untrained = frozenset(untrained)

    def told(self, arrays: ArrayRecord) -> Mapping[str, Setting]:
        """The highest layers, and how their parts are learned."""
        trained = [name for name in arrays if name not in self.untrained]
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in trained))
        high = layers[len(layers) - self.layers :] if self.layers < len(layers) else layers
        return {
            "high": [name for name in trained if name.rpartition(".")[0] in high],
            "rate": float(self.rate),
            "samples": float(self.samples),
        }

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and note whose last models are those of this round."""
        return super().aggregate_train(server_round, self.accept(server_round, replies))
