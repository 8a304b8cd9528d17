"""What stays with a client, its side of :class:`fedwsa.algorithms.personal.server.Personal`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedwsa.wire import messages
from fedwsa.wire.content import Content

_STATE = "personal"

State = dict[str, dict[str, Tensor]]


def own_part(content: Content, state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The client's own tensors: as it keeps them, or as the server says that one begins.

    Empty if the message leaves nothing with the client.
    """
    first = content.get(messages.PERSONAL, {})
    kept = state.get(_STATE, {})
    return {name: kept.get(name, tensor) for name, tensor in first.items()}


def keep(weights: Mapping[str, Tensor], content: Content, state: State) -> dict[str, Tensor]:
    """Put the client's own part of trained weights into its state; the rest, which travels."""
    own = content.get(messages.PERSONAL, {})
    if own:
        state[_STATE] = {name: weights[name] for name in own}
    return {name: tensor for name, tensor in weights.items() if name not in own}
