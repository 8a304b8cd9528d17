"""FedRep, the server half of :class:`fedwsa.algorithms.fedrep.client.HeadThenBody`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord
from pydantic import NonNegativeInt

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.beside.server import Setting, Telling
from fedwsa.algorithms.fedrep.client import HeadThenBody
from fedwsa.algorithms.personal.fedper import FedPer
from fedwsa.algorithms.traits import Traits


class FedRep(Telling, FedPer):
    """A common body and a head for each client, trained one after the other.

    Source: Exploiting Shared Representations for Personalized Federated Learning, arXiv 2102.07078.

    Parameters
    ----------
    head
        A regular expression: how the names of the model's classifier begin.
    head_epochs
        Local epochs of the head, before those of the body.
    personal
        As for FedPer: all that stays with the clients; None: the classifier alone.
    sampling
        As for Flower's FedAvg.
    """

    settings: ClassVar[str] = HeadThenBody.settings
    traits: ClassVar[Traits] = replace(FedPer.traits, objectives=(HeadThenBody,))

    def __init__(
        self,
        head: str,
        *,
        head_epochs: NonNegativeInt,
        personal: str | None = None,
        **sampling: Unpack[Sampling],
    ) -> None:
        if head_epochs < 0:
            raise ValueError(f"head_epochs must be zero or above; got {head_epochs}")
        super().__init__(head, personal, **sampling)
        self.head_epochs = head_epochs

    def told(self, arrays: ArrayRecord) -> Mapping[str, Setting]:
        """The epochs of the head."""
        return {"head-epochs": int(self.head_epochs)}
