"""FedBABU, the server half of :class:`fedwsa.algorithms.fedbabu.client.BodyAlone`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.beside.server import Setting, Telling
from fedwsa.algorithms.fedbabu.client import BodyAlone
from fedwsa.algorithms.personal.server import matcher
from fedwsa.algorithms.run_facts import RunFacts
from fedwsa.algorithms.traits import Traits
from fedwsa.wire.names import NUM_EXAMPLES


class FedBABU(Telling):
    """Federated averaging of the body; the head stays as it began, at all clients.

    A client's own model is what it makes of the whole afterwards (``evaluation.adapt``).

    Source: FedBABU: Toward Enhanced Representation for Federated Image Classification,
    arXiv 2106.06042.

    Parameters
    ----------
    head
        A regular expression: how the names of the model's classifier begin.
    sampling
        As for Flower's FedAvg.
    """

    settings: ClassVar[str] = BodyAlone.settings
    traits: ClassVar[Traits] = Traits(
        averages_by=NUM_EXAMPLES, wants=("head",), requires=True, objectives=(BodyAlone,)
    )

    def __init__(self, head: str, **sampling: Unpack[Sampling]) -> None:
        super().__init__(**sampling)
        self.is_head = matcher(head)

    def require(self, run: RunFacts) -> None:
        """Refuse a pattern of no array or of all.

        Raises
        ------
        ValueError
            Says which.
        """
        for shapes in run.shapes.values():
            if len({self.is_head(name) for name in shapes}) == 1:
                raise ValueError(
                    f"strategy.args.head: matches no array, or all of {', '.join(shapes)}"
                )

    def told(self, arrays: ArrayRecord) -> Mapping[str, Setting]:
        """What stands still."""
        return {"head": [name for name in arrays if self.is_head(name)]}
