"""What a client keeps between rounds, as of the last round that the server accepted from it.

An answer may be refused, late, or lost on its way. What the client kept of such a training must
not count, or client and server would have different pasts: SCAFFOLD and FedDyn, whose server adds
up what clients tell of their variates, would miss the joint minimum from then on. So the server
names the last round whose answer it accepted, and the client has two versions: that of its newest
training, and that from which this training began.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedwsa.algorithms.objective import State
from fedwsa.wire.content import Records, find_record
from fedwsa.wire.names import ACCEPTED_ROUND, SERVER_ROUND

_ROUNDS, _NEWEST, _BEGUN = "rounds", "newest", "begun"
_BEFORE = "before/"


class LostMemory(ValueError):
    """A client does not have what the server supposes it to have; the message is one line."""


def recall(content: Records, kept: Mapping[str, Mapping[str, Tensor]]) -> State:
    """What the client goes on from.

    Parameters
    ----------
    content
        Of the message. If it names no accepted round, the newest version counts.
    kept
        All that the client keeps, see :func:`keep`.

    Returns
    -------
    dict
        Name → tensors, as objectives keep them; empty for a client of whom no answer was accepted
        yet, which begins anew.

    Raises
    ------
    LostMemory
        If the client does not have the version of the accepted round. To begin anew by itself
        would be wrong: the server's memory (c of SCAFFOLD, h of FedDyn) contains what it lost.
    """
    newest = {k: dict(t) for k, t in kept.items() if k != _ROUNDS and not k.startswith(_BEFORE)}
    record = find_record(content, ACCEPTED_ROUND)
    if record is None:
        return newest
    accepted = int(record[ACCEPTED_ROUND])
    if accepted == 0:
        return {}
    rounds = {name: int(number) for name, number in kept.get(_ROUNDS, {}).items()}
    if accepted == rounds.get(_NEWEST):
        return newest
    if accepted == rounds.get(_BEGUN):
        return {k.removeprefix(_BEFORE): dict(t) for k, t in kept.items() if k.startswith(_BEFORE)}
    there = " and ".join(str(number) for number in sorted(set(rounds.values()) - {0})) or "none"
    raise LostMemory(
        f"the client has lost what it kept after round {accepted}, the last that the server "
        f"accepted from it (there is: {there}), as after a restart; it is to begin anew"
    )


def keep(
    content: Records,
    begun: Mapping[str, Mapping[str, Tensor]],
    new: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Mapping[str, Tensor]]:
    """All that a client keeps after a training, in the place of what it kept before.

    Parameters
    ----------
    content
        Of the message.
    begun
        What the training began with, by :func:`recall`.
    new
        What objectives keep after it.

    Raises
    ------
    TypeError, ValueError
        If an objective keeps anything but tensors by name, or under a name that is taken.
    """
    for name, tensors in new.items():
        if name == _ROUNDS or name.startswith(_BEFORE):
            raise ValueError(f"an objective cannot keep {name!r} in its state: take another name")
        if not isinstance(tensors, Mapping) or not all(
            isinstance(tensor, Tensor) for tensor in tensors.values()
        ):
            raise TypeError(f"state[{name!r}] must hold tensors by name, a dict of them")
    record = find_record(content, ACCEPTED_ROUND)
    if record is None:
        return dict(new)
    told = find_record(content, SERVER_ROUND)
    if told is None:
        raise ValueError(f"the message names no {SERVER_ROUND}")
    numbers = {
        _NEWEST: int(told[SERVER_ROUND]),
        _BEGUN: int(record[ACCEPTED_ROUND]),
    }
    before = {_BEFORE + name: tensors for name, tensors in begun.items()}
    return {**new, **before, _ROUNDS: {k: torch.tensor([n]) for k, n in numbers.items()}}
