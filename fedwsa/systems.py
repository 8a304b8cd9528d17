"""Simulated devices: who is there, who gives no answer, and how long work takes.

All draws are keyed by (seed, round, client), so that every strategy meets the same fleet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedwsa import seeding


@dataclass(frozen=True)
class Device:
    """What a client computes and communicates with.

    Attributes
    ----------
    flops_per_second : float
        Floating-point operations of training.
    bytes_per_second : float
        Down as well as up.
    """

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, down: float, flops: float, up: float) -> float:
        """Simulated seconds to receive ``down`` bytes, train, and send ``up`` bytes."""
        communication = (down + up) / self.bytes_per_second
        return communication + flops / self.flops_per_second

    def steps_within(
        self, limit: float, down: float, up: float, batches: Sequence[int], flops: float
    ) -> int:
        """How many training steps leave time to send the result before ``limit`` seconds are over.

        Parameters
        ----------
        batches
            Samples of each step, in their order.
        flops
            Operations of training on a sample.
        """
        done = np.cumsum(batches) * flops
        ends = (down + up) / self.bytes_per_second + done / self.flops_per_second
        return int((ends <= limit).sum())


def speed(seed: int, client: int, spread: float, classes: Sequence[float] = (1.0,)) -> float:
    """How fast a client's device is, for its whole life: one of ``classes``, times e^(σz).

    Parameters
    ----------
    spread
        σ of the log-normal factor, whose median is one; 0: no factor.
    classes
        Of devices, drawn with equal chances.
    """
    drawn = float(np.random.default_rng(seeding.key(seed, "speed", client)).choice(classes))
    if not spread:
        return drawn
    z = np.random.default_rng(seeding.key(seed, "speed-spread", client)).standard_normal()
    return drawn * float(np.exp(spread * z))


def share_of_round(availability: float | Sequence[float], number: int) -> float:
    """The share of the fleet that is there in a round (from 1); a list is repeated."""
    if isinstance(availability, int | float):
        return availability
    return availability[(number - 1) % len(availability)]


def available(seed: int, number: int, clients: int, share: float) -> list[int]:
    """Clients that are there in a round, each with probability ``share``; at least one.

    A client that is there at a share is there at every larger one.
    """
    if share >= 1:
        return list(range(clients))
    draws = [_uniform(seed, "availability", number, client) for client in range(clients)]
    there = [client for client, draw in enumerate(draws) if draw < share]
    return there or [int(np.argmin(draws))]


def drops_out(seed: int, number: int, client: int, probability: float) -> bool:
    """Whether a client that is asked in a round gives no answer."""
    return probability > 0 and _uniform(seed, "client-dropout", number, client) < probability


def _uniform(seed: int, purpose: str, *parts: int) -> float:
    """A number from 0 to below 1."""
    return (seeding.key(seed, purpose, *parts) >> 10) / 2.0**53
