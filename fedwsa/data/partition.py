"""What a partition is, and the checks that every one goes through.

The functions that make them stand in :mod:`fedwsa.data.partitioners`.
"""

from __future__ import annotations

import hashlib
import logging
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedwsa.config.blame import blaming
from fedwsa.config.component import (
    Component,
    ConfigError,
    asked_for,
    build,
    hints_of,
    locate,
    signature_of,
)
from fedwsa.data.severity import severity
from fedwsa.data.shares import Shares

Labels = NDArray[np.int64]
Facts = Mapping[str, Callable[[], Any]]
"""What a partition function may ask for of the data, by the name of a parameter.

``ids``: natural ids of the samples, int64, or None; ``pixels``: the inputs as they are stored;
``positions``: where each sample stands in the training set; ``fingerprint``: of that set's labels.
"""

logger = logging.getLogger("fedwsa")
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class Partition:
    """Which samples each client has.

    Attributes
    ----------
    name : str
        Of the function that made it.
    arguments : dict
        What it was made with, the seed among them.
    shares : Shares
        Sorted indices into the training set.
    labels : ndarray
        Of the training set, ``(N,)``.
    classes : int
        How many there are.
    fingerprint : str
        Of the training set's labels, see :func:`fingerprint`.
    """

    name: str
    arguments: dict[str, Any]
    shares: Shares
    labels: Labels
    classes: int
    fingerprint: str

    @property
    def pool(self) -> int:
        """Size of the training set."""
        return len(self.labels)

    @cached_property
    def label_counts(self) -> NDArray[np.int32]:
        """How many samples of each class each client has: ``(clients, classes)``."""
        cells = self.shares.owners * self.classes + self.labels[self.shares.indices]
        counts = np.bincount(cells, minlength=len(self.shares) * self.classes)
        return counts.reshape(len(self.shares), self.classes).astype(np.int32)

    @property
    def hash(self) -> str:
        """SHA-256 of the shares: the same hash, the same samples at the same clients."""
        return self.shares.hash

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for ``partition.json``."""
        return {
            **self.described(),
            "label_counts": self.label_counts.tolist(),
            "indices": [s.tolist() for s in self.shares],
        }

    def described(self) -> dict[str, Any]:
        """What there is to say of it beside who has what."""
        return {
            "name": self.name,
            "arguments": self.arguments,
            "clients": len(self.shares),
            "samples": len(self.shares.indices),
            "hash": self.hash,
            "data": {"samples": self.pool, "labels": self.fingerprint},
            "severity": severity(self.label_counts),
        }


def fingerprint(labels: Labels) -> str:
    """SHA-256 of the labels of a training set, by which a saved partition knows its data."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


def leaves_out(function: _Function) -> _Function:
    """Mark a partition function that gives some samples to nobody, on purpose."""
    function.leaves_out = True  # type: ignore[attr-defined]
    return function


def make_shares(
    component: Component,
    labels: Labels,
    classes: int,
    clients: int | None,
    seed: int,
    facts: Facts | None = None,
) -> Shares:
    """Make the shares that the configuration names, and check them.

    Parameters
    ----------
    clients
        None: as many as the partition has, where it knows itself.
    facts
        What the function may ask for beside the labels.

    Returns
    -------
    Shares
        Sorted indices of each client.

    Raises
    ------
    ConfigError
        If there are more clients than samples, the partition cannot be made, a client gets
        nothing, a sample is doubled or lost, or a class vanishes. Of a function marked with
        :func:`leaves_out`, samples may be lost, and a class that vanishes is a warning.
    """
    where = f"partition={component.name}"
    function = locate(component.target, "partition._target_")
    if clients is None and not _knows_its_clients(function):
        raise ConfigError(
            f"clients.count: {where} needs a number; null is for partitions that know their "
            "clients: natural, grouped_natural, size, from_file"
        )
    if clients is not None and clients > len(labels):
        raise ConfigError(
            f"clients.count: {clients} clients, but there are only {len(labels)} samples"
        )
    facts = facts or {}
    supplied = {name: facts[name]() for name in asked_for(function, facts, where)}
    made = build(component, "partition", labels, clients, seed, supplied=supplied)
    shares = _as_shares(made, where)
    if clients not in (None, len(shares)):
        raise ConfigError(f"{where}: made {len(shares)} shares for {clients} clients")
    may_lose = getattr(function, "leaves_out", False)
    gone = _check(shares, labels, classes, where, may_lose)
    if gone and not _are_ids(labels, facts):
        named = gone if len(gone) <= 10 else f"{gone[:10]} and {len(gone) - 10} others"
        logger.warning("%s: no client has any sample of class %s", where, named)
    return shares


def _as_shares(made: Any, where: str) -> Shares:
    """What a partition returned, sorted, if it is arrays of indices."""
    if isinstance(made, Shares):
        return made.sorted()
    with blaming(ConfigError, f"{where}: "):  # it may be a generator
        arrays = [np.asarray(s) for s in made] if isinstance(made, Iterable) else None
    if arrays is None or not all(
        a.ndim == 1 and (a.dtype.kind in "iu" or not a.size) for a in arrays
    ):
        raise ConfigError(f"{where}: must return a list of arrays of indices, one for each client")
    return Shares.of(a.astype(np.int64) for a in arrays).sorted()


def _knows_its_clients(function: Callable[..., Any]) -> bool:
    """Whether it takes None for the number of clients: its annotation says so."""
    hints = hints_of(function)
    clients = list(signature_of(function, "partition").parameters)[1:2]
    return any(type(None) in typing.get_args(hints.get(name)) for name in clients)


def _check(shares: Shares, labels: Labels, classes: int, where: str, may_lose: bool) -> list[int]:
    """Refuse shares that cannot be; the classes that nobody has, where some may be left out."""
    if empty := int((shares.sizes == 0).sum()):
        raise ConfigError(f"{where}: {empty_clients(empty, len(shares))}")
    everything = shares.indices
    if everything.min() < 0 or everything.max() >= len(labels):
        raise ConfigError(f"{where}: an index is outside of 0 … {len(labels) - 1}")
    holders = np.bincount(everything, minlength=len(labels))
    if holders.max() > 1:
        raise ConfigError(f"{where}: some samples are at two clients")
    held = np.bincount(labels[everything], minlength=classes)
    gone = np.flatnonzero((np.bincount(labels, minlength=classes) > 0) & (held == 0)).tolist()
    if gone and not may_lose:
        raise ConfigError(f"{where}: no client has any sample of class {gone}; take more clients")
    if not may_lose and (lost := int((holders == 0).sum())):
        raise ConfigError(
            f"{where}: {lost} samples are at no client; a function that leaves some out on "
            "purpose is marked with @leaves_out"
        )
    return gone


def _are_ids(labels: Labels, facts: Facts | None) -> bool:
    """Whether the labels are natural ids, as text has them: who is left out is no lost class."""
    ids = facts["ids"]() if facts and "ids" in facts else None
    return ids is not None and np.array_equal(ids, labels)


def empty_clients(count: int, clients: int) -> str:
    """What is wrong, and what to do about it, when clients would have no sample."""
    return (
        f"{count} of {clients} clients would have no sample; take fewer clients or a partition "
        "of more equal sizes"
    )


def describe(
    component: Component, shares: Shares, labels: Labels, classes: int, seed: int
) -> Partition:
    """A partition with its arguments and statistics; ``labels`` are the training set's."""
    arguments = {**component.arguments, "clients": len(shares), "seed": seed}
    return Partition(component.name, arguments, shares, labels, classes, fingerprint(labels))
