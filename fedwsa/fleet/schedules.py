"""How a learning rate goes over the rounds: a factor for each, of the rate that is given.

A schedule is a function ``(t, rounds, **keys)``; t counts the rounds from 0, so that torch's
schedulers of these names, stepped once a round, have the same values.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

Share = Annotated[float, Field(gt=0, le=1)]


def constant(t: int, rounds: int) -> float:
    """The rate as it is given."""
    return 1.0


def step(t: int, rounds: int, *, every: PositiveInt, factor: Share) -> float:
    """``factor`` times as much after each ``every`` rounds (torch's StepLR)."""
    return factor ** (t // every)


def linear(t: int, rounds: int, *, floor: NonNegativeFloat) -> float:
    """In a straight line towards ``floor``, which comes after the last round (LinearLR)."""
    return 1.0 + (floor - 1.0) * t / rounds


def cosine(t: int, rounds: int, *, floor: NonNegativeFloat) -> float:
    """Along half a cosine towards ``floor``, which comes after the last round.

    Source: SGDR, arXiv 1608.03983, equation 5, without restarts; torch's CosineAnnealingLR.
    """
    return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * t / rounds)) / 2.0


def warmup_cosine(t: int, rounds: int, *, warmup: PositiveInt, floor: NonNegativeFloat) -> float:
    """Up in a straight line through ``warmup`` rounds, then as :func:`cosine`.

    Raises
    ------
    ValueError
        If no round is left after the warm-up.
    """
    if warmup >= rounds:
        raise ValueError(f"warmup={warmup} leaves none of {rounds} rounds")
    if t < warmup:
        return (t + 1) / warmup
    return cosine(t - warmup, rounds - warmup, floor=floor)


def inverse_sqrt(t: int, rounds: int, *, warmup: PositiveInt) -> float:
    """Up in a straight line through ``warmup`` rounds, then as one over the root of the round.

    Source: Attention Is All You Need, arXiv 1706.03762, equation 3, scaled to 1 at its peak.
    """
    number = t + 1
    return min(number / warmup, math.sqrt(warmup / number))
