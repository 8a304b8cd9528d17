"""The samples that a client trains on and those that it holds back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from clients.footprint import free_bytes
from clients.received import Received
from clients.training import Samples
from fedwsa import seeding
from fedwsa.algorithms.attacks.attack import DataAttack, open_attack
from fedwsa.algorithms.objective import LocalRun, State, TrainedOn
from fedwsa.config.component import Component
from fedwsa.data.examples import Examples
from fedwsa.data.federated import FederatedData
from fedwsa.data.skew import leaves_alone, skewed
from fedwsa.models import InputShape, build_model
from fedwsa.models.architecture import architecture_of
from fedwsa.models.nested import Nested
from fedwsa.remembered import in_run
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.config import Config
from fedwsa.wire.content import find_record
from fedwsa.wire.names import POOLED

_SHARE = 0.5  # of what is free on a GPU, for the pool

DROPOUT = "dropout"
"""What a network draws in a training is keyed by it, the round and the client."""


def samples_of(config: Config, received: Received, key: tuple[int, int], phase: int = 0) -> Samples:
    """A client's training samples in a round, keyed by seed, round, client and phase."""
    data, device = received.data, received.device
    random = seeding.generator(config.seed, f"train {phase}" if phase else "train", *key)
    pooled = find_record(received.content, POOLED)
    if pooled is None:
        own = _poisoned(config, _own(config, data, key[1], device), data.whole.classes, key)
    else:
        own = _pool(config, data, float(pooled[POOLED]), random)
    augment = data.whole.augmentation(config.dataset.augment)

    def prepare(inputs: Tensor) -> Tensor:
        return data.whole.prepare(inputs if augment is None else augment(inputs, random))

    return Samples(own.inputs.to(device), own.labels.to(device), prepare, random)


def local_run(
    config: Config,
    received: Received,
    conditions: Conditions,
    samples: Samples,
    state: State,
    key: tuple[int, int],
) -> LocalRun:
    """What the objectives of a client may know of its training in a round."""
    return LocalRun(
        conditions.lr,
        config.local.momentum,
        state,
        len(samples),
        samples=trained_on(config, received.data, samples.inputs, samples.labels, key),
        weight_decay=conditions.weight_decay,
        within=partial(_within, config, received),
    )


def _within(config: Config, received: Received, size: str) -> Nested:
    """The network of a smaller size within the client's."""
    whole, data = received.network, received.data.whole
    return _nested(
        config.model_of(size), whole.component, data.shape, data.classes, received.device
    )


@in_run(8)  # a few sizes
def _nested(
    small: Component, large: Component, shape: InputShape, classes: int, device: str
) -> Nested:
    with torch.device("meta"):
        whole = build_model(large, shape, classes, 0)
    model = build_model(small, shape, classes, 0).to(device)
    return Nested(model, whole, architecture_of(large).axes(whole))


def trained_on(
    config: Config, data: FederatedData, inputs: Tensor, labels: Tensor, key: tuple[int, int]
) -> TrainedOn:
    """Samples of a client as objectives see them."""
    return TrainedOn(
        inputs,
        labels,
        data.whole.classes,
        data.whole.prepare,
        lambda purpose: seeding.generator(config.seed, purpose, *key),
    )


def _own(config: Config, data: FederatedData, client: int, device: str) -> Examples:
    """A client's training samples: where nothing changes them, taken out where it trains."""
    if device == "cpu" or not leaves_alone(config.skew):
        return seen(config, data, client, held=False)
    return resident(data, device)[data.split(client)[0]]


@in_run(1)
def resident(data: FederatedData, device: str) -> Examples:
    """The pool as it lies on a GPU, once for all clients of a worker, if it has room for it."""
    pool = data.whole.train
    if pool.inputs.nbytes > _SHARE * free_bytes(device):
        return pool
    return Examples(pool.inputs.to(device), pool.labels.to(device))


def seen(config: Config, data: FederatedData, client: int, *, held: bool) -> Examples:
    """A client's training samples or its hold-out, as its skew has them."""
    own = data.whole.train[data.split(client)[held]]
    return replace(own, inputs=skewed(config.skew, own.inputs, config.seed, client, held))


def _poisoned(config: Config, own: Examples, classes: int, key: tuple[int, int]) -> Examples:
    """What an attacker trains on, if the attack is on data; an honest client's own."""
    if not config.attack.share:
        return own
    attack = open_attack(config.attack.rule)
    if not isinstance(attack, DataAttack) or key[1] not in config.attackers:
        return own
    return attack.poison(own, classes, seeding.generator(config.seed, "attack", *key))


def _pool(config: Config, data: FederatedData, share: float, random: torch.Generator) -> Examples:
    """A share of the training samples of all clients, for the centralised reference."""
    parts = [seen(config, data, k, held=False) for k in range(len(data.partition.shares))]
    inputs, labels = (torch.cat([getattr(p, of) for p in parts]) for of in ("inputs", "labels"))
    pooled = Examples(inputs, labels)
    if share == 1.0:
        return pooled
    order = torch.randperm(len(pooled), generator=random)
    return pooled[order[: max(1, round(share * len(pooled)))]]
