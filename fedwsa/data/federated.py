"""A data set and its partition, opened once in each process."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedwsa import seeding
from fedwsa.config.component import Component, ConfigError, locate
from fedwsa.data.cache import fetch, keep, place
from fedwsa.data.examples import Examples, LabelledData
from fedwsa.data.keys import digest, of_component, versions
from fedwsa.data.loading import Source, load, open_source
from fedwsa.data.partition import Facts, Partition, describe, fingerprint, make_shares
from fedwsa.data.shares import Shares
from fedwsa.remembered import in_run

logger = logging.getLogger("fedwsa")

HOLD_OUT = 0.2
"""Share of a client's samples that it keeps for evaluation."""

SMALLEST_WITH_HOLD_OUT = 5
"""Clients with fewer samples train on all of them."""


class DataSpec(BaseModel):
    """Which data a run has, and how they are shared out.

    Attributes
    ----------
    source, partition : Component
        Where the examples come from, and what shares them out.
    clients : int or None
        None: as many as the partition has.
    seed : int
        Keys every draw but that of the subset.
    cache_dir : str
        Where decoded examples and partitions are kept.
    public, validation : float
        Shares of the training examples that no client gets.
    train, test : int or None
        How many examples of training and test set are used; None: all.
    """

    model_config = ConfigDict(frozen=True)

    source: Component
    partition: Component
    clients: int | None
    seed: int
    cache_dir: str
    public: float = 0.0
    validation: float = 0.0
    train: int | None = None
    test: int | None = None


@dataclass(frozen=True, eq=False)
class FederatedData:
    """A data set shared out among clients.

    Attributes
    ----------
    whole : LabelledData
        The pool and the global test set.
    partition : Partition
        Who has what of the pool.
    public : Tensor
        Indices of the pool that no client has: what a learngene is learned from.
    validation : Tensor
        Others that no client has: what the server chooses hyper-parameters by.
    seed : int
        Keys the clients' hold-outs.
    reference : str
        What nodes with data of their own are told of the server's; empty: there are none.
    """

    whole: LabelledData
    partition: Partition
    public: Tensor
    validation: Tensor
    seed: int
    reference: str = ""

    @cached_property
    def mark(self) -> str:
        """Differs where the labels of the pool are others, or are shared out otherwise."""
        return digest(self.partition.hash, self.partition.fingerprint)

    @property
    def has_hold_outs(self) -> bool:
        """Whether a client has enough samples to keep some for evaluation."""
        return bool((self.partition.shares.sizes >= SMALLEST_WITH_HOLD_OUT).any())

    def split(self, client: int) -> tuple[Tensor, Tensor]:
        """Indices of a client's training samples and of its hold-out (maybe none)."""
        share = torch.from_numpy(self.partition.shares[client])
        if len(share) < SMALLEST_WITH_HOLD_OUT:
            return share, share[:0]
        random = seeding.generator(self.seed, "hold-out", client)
        share = share[torch.randperm(len(share), generator=random)]
        held = round(len(share) * HOLD_OUT)
        return share[held:], share[:held]


def public_share(count: int, share: float, seed: int) -> Tensor:
    """Sorted indices of the training examples that are public, a share of ``count``."""
    order = torch.randperm(count, generator=seeding.generator(seed, "public"))
    return order[: round(count * share)].sort().values


def validation_share(count: int, share: float, seed: int, public: Tensor) -> Tensor:
    """Sorted indices of a share of ``count`` training images, none of them public."""
    order = torch.randperm(count, generator=seeding.generator(seed, "validation"))
    return order[~torch.isin(order, public)][: round(count * share)].sort().values


def subset(examples: Examples, count: int | None) -> Examples:
    """So many of the examples, in their order, drawn once for all runs; None: all.

    Raises
    ------
    ConfigError
        If there are not so many.
    """
    if count is None:
        return examples
    if count > len(examples):
        raise ConfigError(f"subset: {count} examples, but there are only {len(examples)}")
    order = torch.randperm(len(examples), generator=seeding.generator(0, "subset"))
    return examples[order[:count].sort().values]


def open_federated(spec: DataSpec) -> FederatedData:
    """Open the data, from the caches where they have it.

    The partition is cached too, for the workers of a simulation.

    Raises
    ------
    ConfigError
        See :func:`fedwsa.data.loading.load` and
        :func:`fedwsa.data.partition.make_shares`.
    """
    source = open_source(spec.source)
    whole = load(source, spec.cache_dir)
    train, test = subset(whole.train, spec.train), subset(whole.test, spec.test)
    whole = replace(whole, train=train, test=test)
    strata, seed = whole.train.strata.numpy(), spec.seed
    public = public_share(len(strata), spec.public, seed)
    validating = validation_share(len(strata), spec.validation, seed, public)
    file = _place(spec, source)
    shares = None if file is None else _as_shares(fetch(file), len(strata))
    if shares is None:
        kept = torch.cat([public, validating])
        private = np.setdiff1d(np.arange(len(strata)), kept.numpy())
        facts, labels = _facts(whole, private), strata[private]
        shares = make_shares(spec.partition, labels, whole.strata, spec.clients, seed, facts)
        shares = Shares(private[shares.indices], shares.sizes)
        if file is not None:
            made = {"indices": shares.indices, "sizes": shares.sizes}
            keep(file, {name: torch.from_numpy(array) for name, array in made.items()}, {})
    described_shares = describe(spec.partition, shares, strata, whole.strata, seed)
    return FederatedData(whole, described_shares, public, validating, seed)


def _place(spec: DataSpec, source: Source) -> Path | None:
    """Where the partition is kept; None where nobody knows what it depends on."""
    function = locate(spec.partition.target, "partition._target_")
    made_by, content = of_component(spec.partition, function), source.content
    if made_by is None or content is None:
        logger.info("partition=%s is not kept in cache_dir: the code may have changed", function)
        return None
    made_of = spec.model_copy(update={"cache_dir": "", "test": None}).model_dump(by_alias=True)
    key = digest(made_of, content, made_by, versions("numpy", "torch"))[:24]
    return place(spec.cache_dir) / "partitions" / f"{key}.safetensors"


def _as_shares(cached: tuple[dict[str, Tensor], dict[str, str]] | None, pool: int) -> Shares | None:
    """What a file of the cache holds; None if it is no partition of ``pool`` samples."""
    if cached is None or not {"indices", "sizes"} <= cached[0].keys():
        return None
    indices, sizes = cached[0]["indices"], cached[0]["sizes"]
    if int(sizes.sum()) != len(indices) or int(indices.min()) < 0 or int(indices.max()) >= pool:
        return None
    return Shares(indices.numpy(), sizes.numpy())


def _facts(whole: LabelledData, private: NDArray[np.int64]) -> Facts:
    """What a partition function may ask for of the samples that clients may have."""
    train = whole.train
    return {
        "ids": lambda: None if train.ids is None else train.ids.numpy()[private],
        "pixels": lambda: train.inputs[torch.from_numpy(private)],
        "positions": lambda: private,
        "fingerprint": lambda: fingerprint(train.strata.numpy()),
    }


@in_run(1)
def shared_federated(spec: DataSpec) -> FederatedData:
    """As :func:`open_federated`; what was opened last is shared by all clients of a process."""
    return open_federated(spec)
