"""FedBABU, the client half of :class:`fedwsa.algorithms.fedbabu.server.FedBABU`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fedwsa.algorithms.objective import LocalRun, Objective, Phase, Weights
from fedwsa.wire.content import Content


class BodyAlone(Objective):
    """Train the body while the head stands still.

    Source: arXiv 2106.06042, algorithm 1.
    """

    settings: ClassVar[str] = "fedbabu"

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        pass

    @classmethod
    def phases(cls, content: Content) -> Sequence[Phase]:
        """One, without the head."""
        head = frozenset(content[cls.settings]["head"])
        return (Phase(lambda name: name not in head),)
