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
from numpy.typing import NDArray
from torch import Tensor

from fedwsa import seeding
from fedwsa.components import Component, build, locate
from fedwsa.data.cache import fetch, place, store
from fedwsa.data.examples import LabelledData
from fedwsa.data.loading import Source, load
from fedwsa.data.partition import Facts, Partition, describe, fingerprint, make_shares

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
    dataset: str, partition: str, clients: int | None, seed: int, cache_dir: str, public: float
) -> FederatedData:
    source = open_source(Component.model_validate(json.loads(dataset)))
    whole = load(source, cache_dir)
    component = Component.model_validate(json.loads(partition))
    code = Path(inspect.getfile(locate(component.target, "partition"))).read_bytes()
    files = _files(component)
    made_of = (source.key, partition, clients, seed, public, version("numpy"), code, files)
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:24]
    file = place(cache_dir) / "partitions" / f"{key}.safetensors"
    strata = whole.train.strata.numpy()
    kept_back = public_share(len(strata), public, seed)
    cached = fetch(file)
    if cached is None:
        private = np.setdiff1d(np.arange(len(strata)), kept_back.numpy())
        facts = _facts(whole, private)
        shares = make_shares(component, strata[private], whole.strata, clients, seed, facts)
        shares = [private[share] for share in shares]
        indices = torch.cat([torch.from_numpy(s) for s in shares])
        sizes = torch.tensor([len(s) for s in shares])
        store(file, {"indices": indices, "sizes": sizes}, {})
    else:
        indices, sizes = cached[0]["indices"], cached[0]["sizes"]
        shares = [part.numpy() for part in torch.split(indices, sizes.tolist())]
    described = describe(component, shares, strata, whole.strata, seed)
    return FederatedData(whole, described, kept_back, seed)


def _files(component: Component) -> list[str]:
    """Hashes of the files that its arguments name: another content is another partition."""
    named = [place(value) for value in component.arguments.values() if isinstance(value, str)]
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in named if f.is_file()]


def _facts(whole: LabelledData, private: NDArray[np.int64]) -> Facts:
    """What a partition function may ask for of the samples that clients may have."""
    train = whole.train
    return {
        "ids": lambda: None if train.ids is None else train.ids.numpy()[private],
        "pixels": lambda: train.inputs[torch.from_numpy(private)],
        "positions": lambda: private,
        "fingerprint": lambda: fingerprint(train.strata.numpy()),
    }


def open_federated(
    dataset: Component,
    partition: Component,
    clients: int | None,
    seed: int,
    cache_dir: str,
    public: float = 0.0,
) -> FederatedData:
    """Open the data, from the caches where they have it.

    ``public`` is the share of the pool that no client gets. ``clients`` is None for as many as
    the partition has.

    The last one opened stays open, so that the clients of a process share it. The partition
    is cached too, for the workers of a simulation.

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
