"""Who of the clients that are there is asked to train: functions ``(count, known, **keys)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor


@dataclass(frozen=True)
class Known:
    """What is known of the fleet before a round.

    Attributes
    ----------
    number : int
        Of the round, from 1.
    there : sequence of int
        The clients that may be asked, in their order.
    clients : int
        How many there are at all.
    examples : callable
        Client → how many samples it trains on.
    seconds : callable
        Client → what its training takes, simulated.
    losses : mapping of int to float
        Client → the mean loss of its last training.
    answered : mapping of int to int
        Client → the round of that.
    draw : callable
        Returns a new generator, the same at each call of a round; of the whole run with ``True``.
    """

    number: int
    there: Sequence[int]
    clients: int
    examples: Callable[[int], int]
    seconds: Callable[[int], float]
    losses: Mapping[int, float]
    answered: Mapping[int, int]
    draw: Callable[[bool], torch.Generator]


def uniform(count: int, known: Known) -> list[int]:
    """Each with the same probability; in rounds this is left to the strategy, as Flower does it."""
    order = torch.randperm(len(known.there), generator=known.draw(False))
    return [known.there[k] for k in order[:count].tolist()]


def by_size(count: int, known: Known) -> list[int]:
    """One after the other, each by its share of the samples of those that are left.

    Where the average counts by examples as well, large clients count twice; see ``weighted`` of a
    strategy.
    """
    sizes = torch.tensor([known.examples(k) for k in known.there], dtype=torch.float64)
    return _drawn(known.there, sizes, count, known.draw(False))


def cyclic(count: int, known: Known) -> list[int]:
    """In turn, in an order that is drawn once: whoever waits longest for a turn that is there."""
    order = torch.randperm(known.clients, generator=known.draw(True))
    place = {client: k for k, client in enumerate(order.tolist())}
    waited = sorted(known.there, key=lambda k: (known.answered.get(k, 0), place[k]))
    return waited[:count]


def power_of_choice(
    count: int, known: Known, *, candidates: Annotated[float, Field(ge=1)]
) -> list[int]:
    """Of candidates drawn by size those with the largest loss.

    The loss is that of their last training, and infinite of who has not trained yet (the paper's
    rpow-d, which asks nobody beforehand).

    Source: Client Selection in Federated Learning, arXiv 2010.01243, section 4.

    Parameters
    ----------
    candidates
        d, in cohorts.
    """
    drawn = by_size(math.ceil(candidates * count), known)
    return sorted(drawn, key=lambda k: -known.losses.get(k, math.inf))[:count]


def utility(
    count: int,
    known: Known,
    *,
    explore: Annotated[float, Field(ge=0, le=1)],
    seconds: PositiveFloat | None,
    penalty: NonNegativeFloat,
) -> list[int]:
    """By utility, (samples × loss + a bonus for who was not seen for long) × speed.

    As Oort, but by the mean loss that clients report, where Oort has the root mean square over
    samples, and without its pacer: ``seconds`` stays. The bonus is √(0.1·ln R / L) of the mean
    utility, with L the round in which a client trained last.

    Source: Oort: Efficient Federated Learning via Guided Participant Selection, arXiv 2010.06081,
    algorithm 1.

    Parameters
    ----------
    explore
        Part of a cohort from those that have never trained.
    seconds
        Simulated, that a training should take; None: none is too slow.
    penalty
        α: who takes longer counts (seconds / what it takes)^α times.
    """
    random = known.draw(False)
    fresh = [k for k in known.there if k not in known.losses]
    tried = [k for k in known.there if k in known.losses]
    new = min(len(fresh), max(round(explore * count), count - len(tried)))
    order = torch.randperm(len(fresh), generator=random)[:new].tolist()
    explored = [fresh[k] for k in order]
    worth = torch.tensor([known.examples(k) * known.losses[k] for k in tried], dtype=torch.float64)
    late = torch.tensor([known.answered[k] for k in tried], dtype=torch.float64)
    bonus = (0.1 * math.log(max(known.number, 2)) / late.clamp(min=1)).sqrt()
    worth = worth + bonus * worth.mean()
    if seconds is not None:
        takes = torch.tensor([known.seconds(k) for k in tried], dtype=torch.float64)
        worth = worth * (seconds / takes).clamp(max=1.0) ** penalty
    return explored + _drawn(tried, worth, count - new, random)


def _drawn(
    clients: Sequence[int], weights: Tensor, count: int, random: torch.Generator
) -> list[int]:
    """Without replacement, each by its weight; who weighs nothing comes last."""
    count = min(count, len(clients))
    if not count:
        return []
    # The largest of log(u)/w are such a draw: Efraimidis and Spirakis, 2006.
    chances = torch.rand(len(clients), generator=random, dtype=torch.float64).clamp(min=1e-300)
    keys = chances.log() / weights.clamp(min=1e-300)
    return [clients[k] for k in keys.topk(count).indices.tolist()]
