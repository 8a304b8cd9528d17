"""Partitions by size: labels at random, how many samples each client gets by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from fedwsa.config.component import ConfigError
from fedwsa.data.partition import Labels, empty_clients, leaves_out
from fedwsa.data.partitioners import equal_sizes, shuffled_order
from fedwsa.data.shares import Shares


def iid(labels: Labels, clients: int, seed: int) -> Shares:
    """Equal shares at random."""
    return _by_size(labels, seed, equal_sizes(len(labels), clients))


def linear(labels: Labels, clients: int, seed: int) -> Shares:
    """Sizes that grow linearly: client i has i + 1 parts; labels are shared at random."""
    return _by_parts(labels, seed, np.arange(1.0, clients + 1))


def square(labels: Labels, clients: int, seed: int) -> Shares:
    """Sizes that grow with the square: client i has (i + 1)² parts; labels at random."""
    return _by_parts(labels, seed, np.arange(1.0, clients + 1) ** 2)


def exponential(labels: Labels, clients: int, seed: int, *, ratio: PositiveFloat) -> Shares:
    """Sizes that grow exponentially, the largest ``ratio`` times the smallest.

    Labels are shared at random. (flwr-datasets fixes the growth at e from client to client,
    which leaves most of twenty clients empty.)
    """
    exponents = np.linspace(0.0, 1.0, clients) if clients > 1 else np.zeros(1)
    return _by_parts(labels, seed, ratio**exponents)


@leaves_out
def size(
    labels: Labels,
    clients: int | None,
    seed: int,
    *,
    sizes: Annotated[list[PositiveInt], Field(min_length=1)],
) -> Shares:
    """The sizes that are given, labels at random; what is left over is nobody's."""
    if clients not in (None, len(sizes)):
        raise ConfigError(
            f"clients.count: {clients} clients, but partition.sizes has {len(sizes)}; null takes "
            "as many as there are"
        )
    if sum(sizes) > len(labels):
        raise ConfigError(
            f"partition.sizes: add up to {sum(sizes)}; there are only {len(labels)} samples"
        )
    return _by_size(labels, seed, sizes)


def _by_parts(labels: Labels, seed: int, parts: NDArray[np.float64]) -> Shares:
    """Sizes in proportion to ``parts`` (in flwr-datasets the last client gets the remainders)."""
    sizes = proportional(len(labels), parts)
    if empty := sizes.count(0):
        raise ValueError(empty_clients(empty, len(sizes)))
    return _by_size(labels, seed, sizes)


def _by_size(labels: Labels, seed: int, sizes: Sequence[int]) -> Shares:
    return Shares(shuffled_order(len(labels), seed)[: sum(sizes)], sizes)


def proportional(total: int, parts: Sequence[float] | NDArray[np.float64]) -> list[int]:
    """Whole numbers in proportion to ``parts`` that add up to ``total`` (largest remainders)."""
    exact = np.asarray(parts, dtype=float) / np.sum(parts) * total
    sizes = np.floor(exact).astype(int)
    largest = np.argsort(-(exact - sizes), kind="stable")[: total - int(sizes.sum())]
    sizes[largest] += 1
    return [int(s) for s in sizes]
