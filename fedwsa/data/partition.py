"""Shares of a data set for simulated clients, through flwr-datasets' partitioners.

Each function takes the labels, the number of clients and a seed, then its own arguments by
name (defaults in ``conf/partition/``), and returns the indices of each client. Only labels
and indices go through flwr-datasets, never images.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from fedwsa.components import Component, ConfigError, build

Labels = NDArray[np.int64]
Shares = list[NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Partition:
    """Which samples each client has.

    Attributes
    ----------
    name : str
        Of the function that made it.
    arguments : dict
        What it was made with, the seed among them.
    shares : list of ndarray
        Sorted indices into the training set, an array per client.
    label_counts : ndarray
        Shape ``(clients, classes)``.
    """

    name: str
    arguments: dict[str, Any]
    shares: Shares
    label_counts: NDArray[np.int64]

    @property
    def hash(self) -> str:
        """SHA-256 of the shares: the same hash, the same samples at the same clients."""
        digest = hashlib.sha256()
        for share in self.shares:
            digest.update(len(share).to_bytes(8, "little"))
            digest.update(share.astype("<i8").tobytes())
        return digest.hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for ``partition.json``."""
        return {
            "name": self.name,
            "arguments": self.arguments,
            "clients": len(self.shares),
            "samples": int(sum(len(s) for s in self.shares)),
            "hash": self.hash,
            "label_counts": self.label_counts.tolist(),
            "indices": [s.tolist() for s in self.shares],
        }


def make_shares(
    component: Component, labels: Labels, classes: int, clients: int, seed: int
) -> Shares:
    """Make the shares that the configuration names, and check them.

    Returns
    -------
    list of ndarray
        Sorted indices, an array per client.

    Raises
    ------
    ConfigError
        If there are more clients than samples, the partition cannot be made, a client gets
        nothing, a sample is doubled, or a class vanishes.
    """
    if clients > len(labels):
        raise ConfigError(
            f"clients.count: {clients} clients, but there are only {len(labels)} samples"
        )
    made = build(component, "partition", labels, clients, seed)
    shares = [np.sort(np.asarray(s, dtype=np.int64)) for s in made]
    where = f"partition={component.name}"
    if empty := [s for s in shares if len(s) == 0]:
        raise ConfigError(f"{where}: {_empty_clients(len(empty), clients)}")
    everything = np.concatenate(shares)
    if len(np.unique(everything)) != len(everything):
        raise ConfigError(f"{where}: some samples are at two clients")
    held = np.bincount(labels[everything], minlength=classes)
    if gone := np.flatnonzero((np.bincount(labels, minlength=classes) > 0) & (held == 0)).tolist():
        raise ConfigError(f"{where}: no client has any sample of class {gone}; take more clients")
    return shares


def _empty_clients(count: int, clients: int) -> str:
    return (
        f"{count} of {clients} clients would have no sample; take fewer clients or a partition "
        "of more equal sizes"
    )


def describe(
    component: Component, shares: Shares, labels: Labels, classes: int, seed: int
) -> Partition:
    """A partition with its arguments and statistics."""
    counts = np.stack([np.bincount(labels[s], minlength=classes) for s in shares])
    arguments = {**component.arguments, "clients": len(shares), "seed": seed}
    return Partition(component.name, arguments, shares, counts)


def _shares(partitioner: Any, labels: Labels, clients: int, seed: int) -> Shares:
    """Run a partitioner of flwr-datasets over the labels in a seeded order.

    Some of the partitioners cut the data as it stands, and data sets often stand sorted.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    order = np.random.default_rng(seed).permutation(len(labels))
    partitioner.dataset = Dataset.from_dict({"label": labels[order], "index": order})
    with warnings.catch_warnings(action="ignore"):  # what they warn of, make_shares refuses
        return [np.asarray(partitioner.load_partition(i)["index"][:]) for i in range(clients)]


def _equal_sizes(samples: int, clients: int) -> list[int]:
    """Sizes that differ by at most one and leave no sample out."""
    return [samples // clients + (i < samples % clients) for i in range(clients)]


def iid(labels: Labels, clients: int, seed: int) -> Shares:
    """Equal shares at random."""
    from flwr_datasets.partitioner import IidPartitioner

    return _shares(IidPartitioner(clients), labels, clients, seed)


def dirichlet(
    labels: Labels, clients: int, seed: int, *, alpha: PositiveFloat, min_size: PositiveInt
) -> Shares:
    """Each class is shared out in proportions drawn from Dir(alpha).

    Small ``alpha``: few clients hold a class, and sizes differ. Drawn again, up to ten times,
    until every client has ``min_size`` samples.

    Source: arXiv 1905.12022.
    """
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        clients, "label", alpha, min_size, self_balancing=False, seed=seed
    )
    try:
        return _shares(partitioner, labels, clients, seed)
    except ValueError as error:
        raise ValueError(
            f"no draw with alpha={alpha:g} gives each of {clients} clients {min_size} samples; "
            "take a larger alpha, a smaller min_size, fewer clients, or "
            "partition=inner_dirichlet, whose sizes are equal"
        ) from error


def inner_dirichlet(labels: Labels, clients: int, seed: int, *, alpha: PositiveFloat) -> Shares:
    """Equal sizes; each client's labels follow its own draw from Dir(alpha).

    Source: arXiv 2111.04263.
    """
    from flwr_datasets.partitioner import InnerDirichletPartitioner

    sizes = _equal_sizes(len(labels), clients)
    return _shares(
        InnerDirichletPartitioner(sizes, "label", alpha, seed=seed), labels, clients, seed
    )


def pathological(
    labels: Labels, clients: int, seed: int, *, classes_per_client: PositiveInt
) -> Shares:
    """Each client has samples of exactly ``classes_per_client`` classes.

    The first class of client i is i modulo the classes, the others are drawn, so that no class
    is left out when there are enough clients.
    """
    from flwr_datasets.partitioner import PathologicalPartitioner

    classes = len(np.unique(labels))
    if classes_per_client > classes:
        raise ConfigError(
            f"partition.classes_per_client: {classes_per_client} classes per client, but the "
            f"data has only {classes}"
        )
    return _shares(
        PathologicalPartitioner(
            clients, "label", classes_per_client, "first-deterministic", seed=seed
        ),
        labels,
        clients,
        seed,
    )


def shards(labels: Labels, clients: int, seed: int, *, shards_per_client: PositiveInt) -> Shares:
    """Samples sorted by label and cut into equal shards, ``shards_per_client`` to each client.

    Source: arXiv 1602.05629, section 3. The last shards are one sample larger where the number
    does not divide.
    """
    from flwr_datasets.partitioner import ShardPartitioner

    if clients * shards_per_client > len(labels):
        raise ConfigError(
            f"partition.shards_per_client: {clients} clients with {shards_per_client} shards each "
            f"need as many samples; there are {len(labels)}"
        )
    return _shares(
        ShardPartitioner(
            clients, "label", shards_per_client, keep_incomplete_shard=True, seed=seed
        ),
        labels,
        clients,
        seed,
    )


def linear(labels: Labels, clients: int, seed: int) -> Shares:
    """Sizes that grow linearly: client i has i + 1 parts; labels are shared at random."""
    return _by_size(labels, clients, seed, np.arange(1, clients + 1, dtype=float))


def exponential(labels: Labels, clients: int, seed: int, *, ratio: PositiveFloat) -> Shares:
    """Sizes that grow exponentially, the largest ``ratio`` times the smallest.

    Labels are shared at random. (flwr-datasets fixes the growth at e from client to client,
    which leaves most of twenty clients empty.)
    """
    exponents = np.linspace(0.0, 1.0, clients) if clients > 1 else np.zeros(1)
    return _by_size(labels, clients, seed, ratio**exponents)


def _by_size(labels: Labels, clients: int, seed: int, parts: NDArray[np.float64]) -> Shares:
    from flwr_datasets.partitioner import SizePartitioner

    sizes = proportional(len(labels), parts)
    if empty := sizes.count(0):
        raise ValueError(_empty_clients(empty, clients))
    return _shares(SizePartitioner(sizes), labels, clients, seed)


def proportional(total: int, parts: Sequence[float] | NDArray[np.float64]) -> list[int]:
    """Whole numbers in proportion to ``parts`` that add up to ``total`` (largest remainders)."""
    exact = np.asarray(parts, dtype=float) / np.sum(parts) * total
    sizes = np.floor(exact).astype(int)
    largest = np.argsort(-(exact - sizes), kind="stable")[: total - int(sizes.sum())]
    sizes[largest] += 1
    return [int(s) for s in sizes]
