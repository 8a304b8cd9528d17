"""What stays with a client, its side of :class:`fedwsa.algorithms.personal.server.Personal`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedwsa.algorithms.objective import LocalRun, Objective, State, Weights
from fedwsa.wire.content import Content
from fedwsa.wire.names import PERSONAL

_STATE = "personal"


class OwnPart(Objective):
    """A part of the model stays with the client: as it keeps it, or as the server says one begins.

    The tensors that the server names are never sent.
    """

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if local is None:
            raise ValueError("a client that keeps a part of the model needs its state")
        self._own, self._local = content[PERSONAL].keys(), local

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server sends what a client begins with."""
        return bool(content.get(PERSONAL))

    @classmethod
    def begin_with(cls, content: Content, state: State) -> dict[str, Tensor]:
        """The client's own tensors."""
        kept: Mapping[str, Tensor] = state.get(_STATE, {})
        first: Mapping[str, Tensor] = content[PERSONAL]
        return {name: kept.get(name, tensor) for name, tensor in first.items()}

    def share(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep the client's own part of trained weights; the rest travels."""
        self._local.state[_STATE] = {name: weights[name] for name in self._own}
        return {name: tensor for name, tensor in weights.items() if name not in self._own}
