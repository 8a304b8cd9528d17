"""Partitions that are given rather than drawn: by natural ids, or by a file.

They take None for the number of clients: as many as there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from fedwsa import seeding
from fedwsa.config.component import ConfigError
from fedwsa.data.cache import place
from fedwsa.data.partition import Labels, leaves_out
from fedwsa.data.partition_files import read_shares
from fedwsa.data.shares import Indices, Shares

Ids = NDArray[np.int64]


@leaves_out
def natural(
    labels: Labels,
    clients: int | None,
    seed: int,
    *,
    min_samples: PositiveInt,
    ids: Ids | None,
) -> Shares:
    """A client for each natural id (writer, speaker, device …), in the order of the ids.

    Parameters
    ----------
    clients
        None: all of them. A number: that many, drawn by the seed.
    min_samples
        Ids with fewer are left out.
    """
    _, groups = _by_id(ids, "natural")
    kept = [g for g in groups if len(g) >= min_samples]
    if not kept:
        raise ConfigError(
            f"partition.min_samples: no natural id has {min_samples} samples; the largest has "
            f"{max(map(len, groups))}"
        )
    return _drawn(kept, clients, seed, f"natural ids with at least {min_samples} samples")


@leaves_out
def grouped_natural(
    labels: Labels,
    clients: int | None,
    seed: int,
    *,
    group_size: PositiveInt,
    remainder: Literal["smaller", "bigger", "drop", "strict"],
    ids: Ids | None,
) -> Shares:
    """A client for each ``group_size`` natural ids, which the seed draws.

    Parameters
    ----------
    clients
        None: as many as there are groups. A number: that many of them, drawn by the seed.
    remainder
        Where the number of ids does not divide: ``smaller``, the last group is; ``bigger``, the
        first groups are; ``drop``, the rest is left out; ``strict``, refused.
    """
    names, by_id = _by_id(ids, "grouped_natural")
    count = len(names)
    if remainder == "strict" and count % group_size:
        raise ConfigError(
            f"partition.group_size: {count} natural ids cannot be put into groups of {group_size}"
        )
    if group_size > count and remainder != "smaller":
        raise ConfigError(f"partition.group_size: there are only {count} natural ids")
    order = np.random.default_rng(seeding.key(seed, "natural groups")).permutation(count)
    if remainder == "bigger":
        groups = np.array_split(order, count // group_size)
    else:
        groups = np.split(order, range(group_size, count, group_size))
    if remainder == "drop":
        groups = [g for g in groups if len(g) == group_size]
    shares = [np.concatenate([by_id[i] for i in group]) for group in groups]
    return _drawn(shares, clients, seed, f"groups of {group_size} natural ids")


def _by_id(ids: Ids | None, name: str) -> tuple[Ids, list[Indices]]:
    """The ids there are, and the samples of each."""
    if ids is None:
        raise ConfigError(
            f"partition={name}: needs natural ids, which this data set has not; "
            "dataset=parquet, hub and csv take them from dataset.id_column, numpy from ids"
        )
    names, counts = np.unique(ids, return_counts=True)
    return names, np.split(np.argsort(ids, kind="stable"), np.cumsum(counts)[:-1])


def _drawn(shares: Sequence[Indices], clients: int | None, seed: int, what: str) -> Shares:
    """All shares, or as many as there are to be clients, in their order."""
    if clients is None:
        return Shares.of(shares)
    if clients > len(shares):
        raise ConfigError(f"clients.count: {clients} clients, but there are {len(shares)} {what}")
    random = np.random.default_rng(seeding.key(seed, "natural clients"))
    chosen = np.sort(random.choice(len(shares), clients, replace=False))
    return Shares.of(shares[i] for i in chosen)


@leaves_out
def from_file(
    labels: Labels,
    clients: int | None,
    seed: int,
    *,
    path: str,
    positions: NDArray[np.int64],
    fingerprint: str,
) -> Shares:
    """The partition of a ``partition.json``, which every run and ``fedwsa-partition`` leave.

    Raises
    ------
    ConfigError
        If it was made for other data, or gives a client samples that are public here.
    """
    file = place(path)
    data, saved = read_shares(file, "partition.path")
    if data.labels != fingerprint:
        raise ConfigError(
            f"partition.path: {file} was made for other data: {data.samples} training "
            f"samples, labels {data.labels[:12]}; these have labels {fingerprint[:12]}"
        )
    if clients not in (None, len(saved)):
        raise ConfigError(
            f"clients.count: {clients} clients, but {file} has {len(saved)}; null takes "
            "as many as there are"
        )
    found = np.searchsorted(positions, saved.indices)
    if not np.array_equal(positions[np.minimum(found, len(positions) - 1)], saved.indices):
        raise ConfigError(
            f"partition.path: {file} gives clients samples that are public here or that "
            "there are not; the seed and init.public that it was made with keep them apart"
        )
    return Shares(found, saved.sizes)
