"""What a client keeps in its context, by the versions of :mod:`fedwsa.algorithms.memory.client`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import Array, Context, Message, RecordDict

from fedwsa.algorithms.memory import client as memory
from fedwsa.algorithms.objective import State
from fedwsa.wire import messages
from fedwsa.wire.content import find_record
from fedwsa.wire.names import ACCEPTED_ROUND


def recalled(message: Message, context: Context) -> State:
    """What a client goes on from, see :func:`fedwsa.algorithms.memory.client.recall`."""
    kept = {name: messages.to_tensors(r) for name, r in context.state.array_records.items()}
    return memory.recall(message.content, kept)


def keep(message: Message, context: Context, begun: State, new: State) -> None:
    """Put what is to be kept after a training into the context."""
    kept = memory.keep(message.content, begun, new)
    named = find_record(message.content, ACCEPTED_ROUND) is not None
    for name in set(context.state.array_records) - kept.keys():
        del context.state[name]
    for name, tensors in kept.items():
        if named or tensors is not begun.get(name):
            context.state[name] = messages.precise_arrays(tensors)


def alike_but_for_memory(received: Sequence[Message]) -> bool:
    """Whether messages have one content, but for the round of which each is accepted."""

    def plain(content: RecordDict) -> dict[str, dict[str, object]]:
        return {
            name: {k: v for k, v in record.items() if k != ACCEPTED_ROUND}
            for name, record in content.items()
        }

    first, *others = (plain(message.content) for message in received)
    return all(_same(first, other) for other in others)


def _same(one: object, other: object) -> bool:
    if one is other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, Array) and isinstance(other, Array):
        return one.dtype == other.dtype and np.array_equal(one.numpy(), other.numpy())
    return bool(one == other)
