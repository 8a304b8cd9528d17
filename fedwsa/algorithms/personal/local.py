"""Local training: what clients reach without each other."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Unpack

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.personal.server import Personal
from fedwsa.algorithms.run_facts import RunFacts, require_no_noise
from fedwsa.algorithms.traits import Traits


class LocalOnly(Personal):
    """Each client trains a model of its own, and sends nothing but metrics.

    Clients take part as often as under FedAvg with the same sampling.

    Parameters
    ----------
    sampling
        As for Flower's FedAvg.
    """

    traits: ClassVar[Traits] = replace(
        Personal.traits,
        no_scopes="no weights are averaged, so there are none to align",
        sends_weights=False,
    )

    def __init__(self, **sampling: Unpack[Sampling]) -> None:
        super().__init__(lambda name: True, **sampling)

    def require(self, run: RunFacts) -> None:
        """Refuse a private run; that everything stays with the clients is meant."""
        require_no_noise(self, run)
