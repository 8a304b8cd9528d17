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
from fedwsa.data.images import ImageData, Source, load_images
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
    images : ImageData
        The pool and the global test set.
    partition : Partition
        Who has what of the pool.
    public : Tensor
        Indices of the pool that no client has: what a learngene is learned from.
    validation : Tensor
        Others that no client has: what the server chooses hyper-parameters by.
    seed : int
        Keys the clients' hold-outs.
    """

    images: ImageData
    partition: Partition
    public: Tensor
    validation: Tensor
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
    """Sorted indices of the training images that are public, a share of ``count``."""
    order = torch.randperm(count, generator=seeding.generator(seed, "public"))
    return order[: round(count * share)].sort().values


def validation_share(count: int, share: float, seed: int, public: Tensor) -> Tensor:
    """Sorted indices of a share of ``count`` training images, none of them public."""
    order = torch.randperm(count, generator=seeding.generator(seed, "validation"))
    return order[~torch.isin(order, public)][: round(count * share)].sort().values


def open_source(dataset: Component) -> Source:
    """The source that the configuration names."""
    source: Source = build(dataset, "dataset")
    return source


@lru_cache(maxsize=1)
def _open(
    dataset: str,
    partition: str,
    clients: int,
    seed: int,
    cache_dir: str,
    public: float,
    validation: float,
) -> FederatedData:
    source = open_source(Component.model_validate(json.loads(dataset)))
    images = load_images(source, cache_dir)
    component = Component.model_validate(json.loads(partition))
    versions = [version(p) for p in ("flwr-datasets", "numpy")]
    code = Path(inspect.getfile(locate(component.target, "partition"))).read_bytes()
    facts = repr((source.key, partition, clients, seed, public, validation, versions, code))
    key = hashlib.sha256(facts.encode()).hexdigest()[:24]
    file = place(cache_dir) / "partitions" / f"{key}.safetensors"
    labels = images.train.labels.numpy()
    kept_back = public_share(len(labels), public, seed)
    validating = validation_share(len(labels), validation, seed, kept_back)
    cached = fetch(file)
    if cached is None:
        kept = torch.cat([kept_back, validating])
        private = np.setdiff1d(np.arange(len(labels)), kept.numpy())
        shares = make_shares(component, labels[private], images.classes, clients, seed)
        shares = [private[share] for share in shares]
        indices = torch.cat([torch.from_numpy(s) for s in shares])
        sizes = torch.tensor([len(s) for s in shares])
        store(file, {"indices": indices, "sizes": sizes}, {})
    else:
        indices, sizes = cached[0]["indices"], cached[0]["sizes"]
        shares = [part.numpy() for part in torch.split(indices, sizes.tolist())]
    described = describe(component, shares, labels, images.classes, seed)
    return FederatedData(images, described, kept_back, validating, seed)


def open_federated(
    dataset: Component,
    partition: Component,
    clients: int,
    seed: int,
    cache_dir: str,
    public: float = 0.0,
    validation: float = 0.0,
) -> FederatedData:
    """Open the data, from the caches where they have it.

    ``public`` and ``validation`` are shares of the pool that no client gets.

    The last one opened stays open, so that the clients of a process share it. The partition
    is cached too: the workers of a simulation are spared the import of flwr-datasets.

    Raises
    ------
    ConfigError
        See :func:`fedwsa.data.images.load_images` and
        :func:`fedwsa.data.partition.make_shares`.
    """
    return _open(
        json.dumps(dataset.model_dump(by_alias=True)),
        json.dumps(partition.model_dump(by_alias=True)),
        clients,
        seed,
        cache_dir,
        public,
        validation,
    )
