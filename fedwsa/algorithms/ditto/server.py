"""Ditto, the server half of :class:`fedwsa.algorithms.ditto.client.OwnByDitto`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord
from pydantic import NonNegativeFloat

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.beside.server import Beside, Setting
from fedwsa.algorithms.ditto.client import OwnByDitto
from fedwsa.algorithms.traits import Traits


class Ditto(Beside):
    """Federated averaging, and for each client a model of its own that is pulled to the average.

    Source: Ditto: Fair and Robust Federated Learning Through Personalization, arXiv 2012.04221.

    Parameters
    ----------
    pull
        λ: 0 is training alone; the larger, the nearer to the global model.
    sampling
        As for Flower's FedAvg.
    """

    settings: ClassVar[str] = OwnByDitto.settings
    traits: ClassVar[Traits] = replace(Beside.traits, objectives=(OwnByDitto,))

    def __init__(self, *, pull: NonNegativeFloat, **sampling: Unpack[Sampling]) -> None:
        if pull < 0:
            raise ValueError(f"pull must be zero or above; got {pull}")
        super().__init__(**sampling)
        self.pull = pull

    def told(self, arrays: ArrayRecord) -> Mapping[str, Setting]:
        """λ."""
        return {"pull": float(self.pull)}
