"""FedRep, the client half of :class:`fedwsa.algorithms.fedrep.server.FedRep`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fedwsa.algorithms.objective import LocalRun, Objective, Phase, Weights
from fedwsa.wire.content import Content
from fedwsa.wire.names import PERSONAL


class HeadThenBody(Objective):
    """Train first what stays with the client, then the rest, each while the other stands still.

    Source: arXiv 2102.07078, algorithm 1.
    """

    settings: ClassVar[str] = "fedrep"

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        pass

    @classmethod
    def phases(cls, content: Content) -> Sequence[Phase]:
        """The client's own part, so many epochs; then what is shared, the epochs of the run."""
        own = frozenset(content[PERSONAL])
        epochs = int(content[cls.settings]["head-epochs"])
        return Phase(own.__contains__, epochs), Phase(lambda name: name not in own)
