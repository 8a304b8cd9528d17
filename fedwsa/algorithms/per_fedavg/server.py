"""Per-FedAvg, the server half of :class:`fedwsa.algorithms.per_fedavg.client.MetaGradient`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Unpack

from flwr.app import ArrayRecord
from pydantic import NonNegativeFloat, PositiveFloat

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.beside.server import Setting, Telling
from fedwsa.algorithms.per_fedavg.client import MetaGradient
from fedwsa.algorithms.traits import Traits
from fedwsa.scope.weight_scope import choose
from fedwsa.wire.names import NUM_EXAMPLES

Hessian = Literal["first_order", "free"]


class PerFedAvg(Telling):
    """Federated averaging of a model that is good after a step of each client.

    Source: Personalized Federated Learning with Theoretical Guarantees, arXiv 2002.07948.

    Parameters
    ----------
    rate
        α, of that step; 0 is federated averaging.
    hessian : {"first_order", "free"}
        Whether second derivatives are left out, or taken by differences of gradients.
    way
        δ, of these differences.
    sampling
        As for Flower's FedAvg.
    """

    settings: ClassVar[str] = MetaGradient.settings
    traits: ClassVar[Traits] = Traits(averages_by=NUM_EXAMPLES, objectives=(MetaGradient,))

    def __init__(
        self,
        *,
        rate: NonNegativeFloat,
        hessian: Hessian,
        way: PositiveFloat,
        **sampling: Unpack[Sampling],
    ) -> None:
        if rate < 0 or way <= 0:
            raise ValueError(f"rate must be zero or above, way above; got {rate}, {way}")
        super().__init__(**sampling)
        self.rate, self.hessian, self.way = rate, choose(Hessian, hessian, "hessian"), way

    def told(self, arrays: ArrayRecord) -> Mapping[str, Setting]:
        """α, δ and what of the second derivatives."""
        first_order = self.hessian == "first_order"
        return {"rate": float(self.rate), "way": float(self.way), "first-order": first_order}
