"""Data that stay where they are: in a deployment each node may have a folder of its own.

There is no pool to share out. The server has a small data set of the same kind, the reference: it
says what a model must know (classes, how inputs are normalised), and its test part is the global
test set. Nodes are told, read the training part of their own folder, and say how much it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from fedwsa.config.component import Component, ConfigError, asked_for, locate
from fedwsa.data.examples import LabelledData
from fedwsa.data.federated import (
    DataSpec,
    FederatedData,
    public_share,
    subset,
    validation_share,
)
from fedwsa.data.images import ImageData, coloured
from fedwsa.data.keys import digest
from fedwsa.data.loading import KINDS, Source, load, open_source
from fedwsa.data.partition import Labels, Partition, describe
from fedwsa.data.shares import Shares
from fedwsa.remembered import in_run


def own(labels: Labels, clients: int, seed: int) -> NoReturn:
    """The partition of a deployment whose nodes have data of their own.

    Raises
    ------
    ConfigError
        Always: nothing can be shared out.
    """
    raise ConfigError(
        "partition=own: for deployments, where each node has a folder of its own (docs/deploy.md); "
        "a simulation takes another partition"
    )


def is_own(partition: Component) -> bool:
    """Whether nodes have data of their own."""
    return partition.target == f"{__name__}.own"


class Reference(BaseModel):
    """What nodes must know of the server's data, to prepare their own as it does.

    Attributes
    ----------
    kind : str
        Of the examples.
    classes : int
        Labels are 0 … classes − 1.
    names : tuple of str
        Of the classes, where folders are called by them.
    shape : tuple of int
        Of an example.
    facts : dict
        See :meth:`fedwsa.data.examples.LabelledData.facts`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    classes: int
    names: tuple[str, ...]
    shape: tuple[int, ...]
    facts: dict[str, Any]


def open_reference(spec: DataSpec) -> tuple[LabelledData, Reference]:
    """The server's data, and what it tells of them."""
    source = open_source(spec.source)
    whole = load(source, spec.cache_dir)
    train, test = subset(whole.train, spec.train), subset(whole.test, spec.test)
    whole = replace(whole, train=train, test=test)
    told = Reference(
        kind=whole.kind,
        classes=whole.classes,
        names=source.classes or whole.names,
        shape=whole.shape,
        facts=whole.facts(),
    )
    return whole, told


@dataclass(frozen=True, eq=False)
class Elsewhere(Partition):
    """Shares that lie on the nodes, of which the server knows the sizes alone."""

    def as_dict(self) -> dict[str, Any]:
        """What is known: no indices, no labels."""
        return {
            "name": self.name,
            "arguments": self.arguments,
            "clients": len(self.shares),
            "samples": len(self.shares.indices),
            "sizes": self.shares.sizes.tolist(),
            "hash": self.hash,
        }


def open_server(
    spec: DataSpec, whole: LabelledData, told: Reference, sizes: Sequence[int]
) -> FederatedData:
    """The server's data, with a partition of as many samples as the nodes say they have.

    Parameters
    ----------
    whole, told
        See :func:`open_reference`.
    sizes
        Samples of each client.
    """
    public = public_share(len(whole.train), spec.public, spec.seed)
    validating = validation_share(len(whole.train), spec.validation, spec.seed, public)
    shares = Shares(np.arange(sum(sizes)), sizes)
    arguments = {"clients": len(shares), "seed": spec.seed}
    partition = Elsewhere("own", arguments, shares, np.arange(0), whole.classes, "")
    reference = told.model_dump_json()
    return FederatedData(whole, partition, public, validating, spec.seed, reference)


@in_run(1)
def open_node(spec: DataSpec, path: str, client: int, clients: int, told: str) -> FederatedData:
    """A node's data: everything in its folder belongs to its client; opened once in a run.

    Parameters
    ----------
    path
        Of the folder, which is laid out as the server's ``dataset.path`` is.
    client, clients
        Which client it is, and how many there are.
    told
        The server's :class:`Reference`, as JSON.

    Raises
    ------
    ConfigError
        If the folder has no data, or not such as the server's.
    """
    reference = Reference.model_validate_json(told)
    whole = load(_source_at(spec.source, path, reference), spec.cache_dir)
    if whole.kind == reference.kind == ImageData.kind:
        whole = replace(whole, train=coloured(whole.train, reference.shape[0]))
    if (whole.kind, whole.shape) != (reference.kind, reference.shape):
        raise ConfigError(
            f"data-path: {path} has {whole.kind} of shape {tuple(whole.shape)}, the server "
            f"{reference.kind} of shape {tuple(reference.shape)}"
        )
    if (highest := int(whole.train.labels.max())) >= reference.classes:
        raise ConfigError(
            f"data-path: {path} has labels up to {highest}; the server's data have "
            f"{reference.classes} classes"
        )
    try:
        whole.require_like(reference.facts)
    except ValueError as error:
        raise ConfigError(f"data-path: {path} has {error}") from None
    kind = KINDS[reference.kind]
    whole = kind(whole.train, whole.test, reference.classes, **reference.facts)
    sizes = np.zeros(clients, dtype=np.int64)
    sizes[client] = len(whole.train)
    shares = Shares(np.arange(len(whole.train)), sizes)
    none, strata = torch.arange(0), whole.train.strata.numpy()
    partition = describe(spec.partition, shares, strata, whole.strata, spec.seed)
    return FederatedData(whole, partition, none, none, spec.seed)


def _source_at(source: Component, path: str, reference: Reference) -> Source:
    """The source of the configuration, but of a node's folder."""
    asked = ["path", "classes"]
    if asked_for(locate(source.target, "dataset._target_"), asked, "dataset") != asked:
        raise ConfigError(
            f"dataset: nodes cannot have {source.name} of their own, but parquet, image_folder, "
            "csv or numpy"
        )
    there = source.replace(path=path)
    try:
        found = open_source(there, supplied={"classes": reference.names})
    except ConfigError as error:
        raise ConfigError(str(error).replace("dataset.path", "data-path")) from None
    # Two nodes on one machine have caches in common.
    key = digest(found.key, reference.names)[:24]

    def decode() -> LabelledData:
        try:
            return found.decode()
        except ConfigError as error:
            raise ConfigError(str(error).replace("dataset.path", "data-path")) from None

    return Source(f"own-{key}", decode, reference.names, found.made_of)
