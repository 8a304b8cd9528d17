"""The trainings of which a client's round consists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clients.cohort import count_steps
from fedwsa.algorithms.objective import Objective, Phase
from fedwsa.schema.conditions import Conditions
from fedwsa.wire.content import Content


def phases_of(kinds: Sequence[type[Objective]], content: Content) -> list[Phase]:
    """What a message asks for; one training of the whole model, if nothing else.

    Raises
    ------
    ValueError
        If two algorithms ask for phases.
    """
    asking = {kind.__name__: found for kind in kinds if (found := kind.phases(content))}
    if len(asking) > 1:
        raise ValueError(f"{' and '.join(asking)} both say how a round is divided")
    [phases] = asking.values() or [[Phase()]]
    return [phase for phase in phases if phase.epochs != 0]


def conditions_in(
    phases: Sequence[Phase], conditions: Conditions, samples: int
) -> list[Conditions]:
    """A client's conditions in each phase: together no more steps than it has time for."""
    found, left = [], conditions.steps
    for phase in phases:
        epochs = conditions.epochs if phase.epochs is None else phase.epochs
        own = replace(conditions, epochs=epochs, steps=left)
        if left is not None:
            left -= count_steps(samples, own)
        found.append(own)
    return found
