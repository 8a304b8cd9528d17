"""FedPer: a common body, and a head for each client."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Unpack

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.personal.server import Personal, matcher
from fedwsa.algorithms.run_facts import RunFacts
from fedwsa.algorithms.traits import Traits
from fedwsa.models import state


class FedPer(Personal):
    """The classifier stays with each client, the layers before it are averaged.

    Source: Federated Learning with Personalization Layers, arXiv 1912.00818.

    Parameters
    ----------
    head
        A regular expression: how the names of the model's classifier begin.
    personal
        The same for all that is to stay with the clients; None: the classifier alone.
    sampling
        As for Flower's FedAvg.
    """

    traits: ClassVar[Traits] = replace(Personal.traits, wants=("head",))

    def __init__(
        self, head: str, personal: str | None = None, **sampling: Unpack[Sampling]
    ) -> None:
        super().__init__(matcher(head if personal is None else personal), **sampling)

    def require(self, run: RunFacts) -> None:
        """Refuse, beside what any personal part does, half of a tie: arrays go by their names.

        Raises
        ------
        ValueError
            Names the arrays that are one.
        """
        super().require(run)
        for same in (tie for model in run.models.values() for tie in state.tied(model)):
            if len({self.is_personal(name) for name in same}) > 1:
                raise ValueError(
                    f"strategy.args.personal: {' and '.join(same)} are one tied array, of which "
                    "one name would stay with the clients and the other not; match all or none"
                )
