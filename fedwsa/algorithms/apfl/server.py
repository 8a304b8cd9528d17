"""APFL, the server half of :class:`fedwsa.algorithms.apfl.client.Mixture`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Unpack

from flwr.app import ArrayRecord
from pydantic import Field

from fedwsa.algorithms.apfl.client import Mixture
from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.beside.server import Beside, Setting
from fedwsa.algorithms.traits import Traits


class APFL(Beside):
    """Federated averaging, and for each client a mixture of a model of its own and the shared one.

    Source: Adaptive Personalized Federated Learning, arXiv 2003.13461.

    Parameters
    ----------
    share
        α, the part of a client's own model in the mixture that it answers by: 0 is federated
        averaging, 1 training alone.
    adapts
        Whether each client changes its α, from there.
    sampling
        As for Flower's FedAvg.
    """

    settings: ClassVar[str] = Mixture.settings
    traits: ClassVar[Traits] = replace(Beside.traits, objectives=(Mixture,))

    def __init__(
        self,
        *,
        share: Annotated[float, Field(ge=0, le=1)],
        adapts: bool,
        **sampling: Unpack[Sampling],
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1; got {share}")
        super().__init__(**sampling)
        self.share, self.adapts = share, adapts

    def told(self, arrays: ArrayRecord) -> Mapping[str, Setting]:
        """α to begin with, and whether it adapts."""
        return {"share": float(self.share), "adapts": self.adapts}
