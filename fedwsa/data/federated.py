"""A data set and its partition, opened once in each process."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedwsa import seeding
from fedwsa.components import Component, build, locate
from fedwsa.data.cache import fetch, place, store
from fedwsa.data.examples import LabelledData
from fedwsa.data.loading import Source, load
from fedwsa.data.partition import Partition, describe, make_shares

HOLD_OUT = 0.2
"""Share of a client's samples that it keeps for evaluation."""

SMALLEST_WITH_HOLD_OUT = 5
"""Clients with fewer samples train on all of them."""


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
    seed : int
        Keys the clients' hold-outs.
    """

    whole: LabelledData
    partition: Partition
    public: Tensor
    seed: int

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


def open_source(dataset: Component) -> Source:
    """The source that the configuration names."""
    source: Source = build(dataset, "dataset")
    return source


@lru_cache(maxsize=1)
def _open(
    dataset: str, partition: str, clients: int, seed: int, cache_dir: str, public: float
) -> FederatedData:
    source = open_source(Component.model_validate(json.loads(dataset)))
    whole = load(source, cache_dir)
    component = Component.model_validate(json.loads(partition))
    versions = [version(p) for p in ("flwr-datasets", "numpy")]
    code = Path(inspect.getfile(locate(component.target, "partition"))).read_bytes()
    facts = repr((source.key, partition, clients, seed, public, versions, code))
    key = hashlib.sha256(facts.encode()).hexdigest()[:24]
    file = place(cache_dir) / "partitions" / f"{key}.safetensors"
    strata = whole.train.strata.numpy()
    kept_back = public_share(len(strata), public, seed)
    cached = fetch(file)
    if cached is None:
        private = np.setdiff1d(np.arange(len(strata)), kept_back.numpy())
        shares = make_shares(component, strata[private], whole.strata, clients, seed)
        shares = [private[share] for share in shares]
        indices = torch.cat([torch.from_numpy(s) for s in shares])
        sizes = torch.tensor([len(s) for s in shares])
        store(file, {"indices": indices, "sizes": sizes}, {})
    else:
        indices, sizes = cached[0]["indices"], cached[0]["sizes"]
        shares = [part.numpy() for part in torch.split(indices, sizes.tolist())]
    described = describe(component, shares, strata, whole.strata, seed)
    return FederatedData(whole, described, kept_back, seed)


def open_federated(
    dataset: Component,
    partition: Component,
    clients: int,
    seed: int,
    cache_dir: str,
    public: float = 0.0,
) -> FederatedData:
    """Open the data, from the caches where they have it.

    ``public`` is the share of the pool that no client gets.

    The last one opened stays open, so that the clients of a process share it. The partition
    is cached too: the workers of a simulation are spared the import of flwr-datasets.

    Raises
    ------
    ConfigError
        See :func:`fedwsa.data.loading.load` and
        :func:`fedwsa.data.partition.make_shares`.
    """
    return _open(
        json.dumps(dataset.model_dump(by_alias=True)),
        json.dumps(partition.model_dump(by_alias=True)),
        clients,
        seed,
        cache_dir,
        public,
    )
