"""Simulated devices: who is there, who gives no answer, and how long work takes.

All draws are keyed by (seed, round, client), so that every strategy meets the same fleet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedwsa import seeding
from fedwsa.fleet import traces


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
        return (down + up) / self.bytes_per_second + flops / self.flops_per_second


@dataclass(frozen=True)
class Task:
    """A training that a client is asked for.

    Before there is an answer, it is taken to be as large as what was sent.

    Attributes
    ----------
    device : Device
        Of the client.
    down : int
        Bytes that it is sent.
    flops_per_sample : float
        Of training.
    batches : sequence of int
        Samples of each step, in their order.
    """

    device: Device
    down: int
    flops_per_sample: float
    batches: Sequence[int]

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        return len(self.batches)

    def steps_within(self, deadline: float) -> int:
        """How many steps leave time to send the result before the deadline."""
        done = np.cumsum(self.batches) * self.flops_per_sample
        sent = 2 * self.down / self.device.bytes_per_second
        return int((sent + done / self.device.flops_per_second <= deadline).sum())

    def flops(self, steps: int) -> float:
        """Floating-point operations of the first steps."""
        return self.flops_per_sample * sum(self.batches[:steps])

    def seconds(self, steps: int, up: float) -> float:
        """Simulated seconds of the first steps and an answer of ``up`` bytes."""
        return self.device.seconds(self.down, self.flops(steps), up)


def check_availability(value: object) -> object:
    """Check the form of ``clients.availability``: a share, a list of them, or a trace.

    Raises
    ------
    ValueError
        Says what is allowed.
    """
    if isinstance(value, dict):
        traces.check(value)
        return value
    shares = value if isinstance(value, list) else [value]
    if not shares or not all(_is_share(share) for share in shares):
        raise ValueError(
            "must be a share, above 0 and at most 1, a list of them by round, "
            "{day: SECONDS, share: PART} or {file: CSV}"
        )
    return value


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


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
    keys = seeding.keys(seed, "availability", number, range(clients))
    draws = _uniform(keys)
    there: list[int] = np.flatnonzero(draws < share).tolist()
    return there or [int(np.argmin(draws))]


def unseen(seed: int, clients: int, share: float) -> frozenset[int]:
    """Clients that never train: a share of all, drawn for the whole run."""
    count = round(share * clients)
    if not count:
        return frozenset()
    keys = seeding.keys(seed, "unseen", range(clients))
    return frozenset(np.argsort(keys, kind="stable")[:count].tolist())


def drops_out(seed: int, number: int, client: int, probability: float) -> bool:
    """Whether a client that is asked in a round gives no answer."""
    if not probability > 0:
        return False
    key = np.array(seeding.key(seed, "client-dropout", number, client))
    return bool(_uniform(key) < probability)


def _uniform(keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers from 0 to below 1."""
    return (keys >> 10) / 2.0**53
