"""Functions that share a data set out among clients, by their labels or a value.

Each takes the labels, the number of clients and a seed, then its own arguments by name (defaults
in ``conf/partition/``), and returns the indices of each client. It may ask by name for further
facts of the data (:data:`fedwsa.data.partition.Facts`).

The definitions are those of flwr-datasets' partitioners, and so are the shares, to the sample,
where nothing else is said; the tests hold them against the library. They stand here in NumPy
because the library takes 1.8 s to import and selects each client's rows as a data set with a
fingerprint of its own: 2 to 9 s for 1000 clients, where these take 0.3 s at most.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from fedwsa import seeding
from fedwsa.config.component import ConfigError, locate
from fedwsa.data.partition import Labels
from fedwsa.data.shares import Shares

NOBODY = -1
TRIES = 11
"""How often :func:`dirichlet` draws before it gives up."""

Owners = NDArray[np.int64]
"""The client of each sample, or NOBODY."""


def shuffled_order(count: int, seed: int) -> NDArray[np.int64]:
    """A seeded order: some functions cut the data as it stands, and data often stand sorted."""
    return np.random.default_rng(seed).permutation(count)


def by_owner(order: NDArray[np.int64], owners: Owners, clients: int) -> Shares:
    """The indices of each client, where sample ``order[i]`` belongs to ``owners[i]``."""
    grouped = np.argsort(owners, kind="stable")
    owned = grouped[np.count_nonzero(owners == NOBODY) :]
    sizes = np.bincount(owners[owned], minlength=clients)
    return Shares(order[owned], sizes)


def _by_class(
    labels: Labels, clients: int, seed: int, rule: Callable[[int, int], Owners]
) -> Shares:
    """Share out by class: ``rule(i, n)`` has the owners of the n samples of the i-th class."""
    order = shuffled_order(len(labels), seed)
    shuffled = labels[order]
    owners = np.empty(len(labels), dtype=np.int64)
    for i, label in enumerate(np.unique(labels)):
        mine = np.flatnonzero(shuffled == label)
        owners[mine] = rule(i, len(mine))
    return by_owner(order, owners, clients)


def _cut(fractions: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Which of the pieces of a cut into ``fractions`` each of ``count`` samples in a row is in."""
    cuts = (np.cumsum(fractions) * count).astype(int)[:-1]
    return np.searchsorted(cuts, np.arange(count), side="right")


def equal_sizes(samples: int, clients: int) -> list[int]:
    """Sizes that differ by at most one and leave no sample out."""
    return [samples // clients + (i < samples % clients) for i in range(clients)]


def _require_classes(classes_per_client: int, classes: int) -> None:
    if classes_per_client > classes:
        raise ConfigError(
            f"partition.classes_per_client: {classes_per_client} classes per client, but the "
            f"data has only {classes}"
        )


def _require_samples(label: int, wanted: int, there: int) -> None:
    if wanted > there:
        raise ValueError(
            f"class {label} would be at clients that need {wanted} samples of it; there are "
            f"{there}; take fewer clients or fewer classes per client"
        )


def dirichlet(
    labels: Labels, clients: int, seed: int, *, alpha: PositiveFloat, min_size: PositiveInt
) -> Shares:
    """Each class is shared out in proportions drawn from Dir(alpha).

    Small ``alpha``: few clients hold a class, and sizes differ. Drawn again, up to ten times,
    until every client has ``min_size`` samples.

    Source: arXiv 1905.12022.
    """
    random = np.random.default_rng(seed)
    for _ in range(TRIES):
        shares = _by_class(
            labels,
            clients,
            seed,
            lambda _, count: _cut(random.dirichlet([alpha] * clients), count),
        )
        if shares.sizes.min() >= min_size:
            return shares
    raise ValueError(
        f"no draw with alpha={alpha:g} gives each of {clients} clients {min_size} samples; "
        "take a larger alpha, a smaller min_size, fewer clients, or "
        "partition=inner_dirichlet, whose sizes are equal"
    )


def inner_dirichlet(labels: Labels, clients: int, seed: int, *, alpha: PositiveFloat) -> Shares:
    """Equal sizes; each client's labels follow its own draw from Dir(alpha).

    Sample by sample, a client that is not full is drawn and then a class that is not exhausted,
    by the client's own proportions; a client whose classes are all exhausted takes any other
    (flwr-datasets fails there).

    Source: arXiv 2111.04263.
    """
    random = np.random.default_rng(seed)
    order = shuffled_order(len(labels), seed)
    names, shuffled = np.unique(labels[order], return_inverse=True)
    stock = [np.flatnonzero(shuffled == i).tolist() for i in range(len(names))]
    wishes = random.dirichlet([alpha] * len(names), size=clients)
    ladders = _ladders(wishes)
    room, open_clients = equal_sizes(len(labels), clients), list(range(clients))
    owners = np.empty(len(labels), dtype=np.int64)
    for _ in range(len(labels)):
        place = int(random.integers(0, len(open_clients)))
        while not room[open_clients[place]]:
            open_clients.pop(place)
            place = int(random.integers(0, len(open_clients)))
        client = open_clients[place]
        room[client] -= 1
        while not stock[label := bisect_right(ladders[client], random.random())]:
            wishes[:, label] = 0
            left = np.array([bool(s) for s in stock])
            wishes[wishes.sum(1) == 0] = left
            wishes /= wishes.sum(1, keepdims=True)
            ladders = _ladders(wishes)
        owners[stock[label].pop()] = client
    return by_owner(order, owners, clients)


def _ladders(wishes: NDArray[np.float64]) -> list[list[float]]:
    """Cumulated probabilities of each row, by which a uniform number draws a class."""
    steps = wishes.cumsum(1)
    ladders: list[list[float]] = (steps / steps[:, -1:]).tolist()
    return ladders


def extended_dirichlet(
    labels: Labels,
    clients: int,
    seed: int,
    *,
    classes_per_client: PositiveInt,
    alpha: PositiveFloat,
    min_per_class: NonNegativeInt,
) -> Shares:
    """Each client first gets ``classes_per_client`` classes; Dir(alpha) shares each among them.

    Source: Li and Lyu, Convergence analysis of sequential federated learning on heterogeneous
    data, arXiv 2311.03154, which calls it ExDir(C, α). Ours: every class is given a first holder
    before the other classes of a client are drawn (the paper draws all anew until each has one),
    and a holder gets ``min_per_class`` samples of the class before the rest is shared (0: the
    paper's rule, which may leave clients with nothing).
    """
    classes = len(np.unique(labels))
    _require_classes(classes_per_client, classes)
    if clients * classes_per_client < classes:
        raise ValueError(
            f"{clients} clients of {classes_per_client} classes cannot hold {classes} classes; "
            "take more clients or more classes per client"
        )
    random = np.random.default_rng(seeding.key(seed, "extended dirichlet"))
    holds = _deal_classes(random, clients, classes, classes_per_client)

    def rule(i: int, count: int) -> Owners:
        holders = np.flatnonzero(holds[:, i])
        _require_samples(i, min_per_class * len(holders), count)
        first = np.repeat(holders, min_per_class)
        shares = random.dirichlet([alpha] * len(holders))
        return np.concatenate([first, holders[_cut(shares, count - len(first))]])

    return _by_class(labels, clients, seed, rule)


def _deal_classes(
    random: np.random.Generator, clients: int, classes: int, each: int
) -> NDArray[np.bool_]:
    """Which classes each client holds: ``each`` at random, and no class without a holder."""
    # The classes with the largest numbers are held; a first holder's number is above all others.
    numbers = random.random((clients, classes))
    turns = random.permutation(clients)[np.arange(classes) % clients]
    numbers[turns, random.permutation(classes)] += 1
    holds = np.zeros((clients, classes), dtype=bool)
    np.put_along_axis(holds, np.argsort(-numbers, axis=1)[:, :each], True, axis=1)
    return holds


def pathological(
    labels: Labels, clients: int, seed: int, *, classes_per_client: PositiveInt
) -> Shares:
    """Each client has samples of exactly ``classes_per_client`` classes.

    The first class of client i is i modulo the classes, the others are drawn, so that no class
    is left out when there are enough clients.
    """
    names = np.unique(labels)
    _require_classes(classes_per_client, len(names))
    random = np.random.default_rng(seed)
    holds = np.zeros((clients, len(names)), dtype=bool)
    for client, mine in enumerate(holds):
        mine[client % len(names)] = True
        while mine.sum() < classes_per_client:
            mine[random.integers(0, len(names))] = True

    def rule(i: int, count: int) -> Owners:
        holders = np.flatnonzero(holds[:, i])
        _require_samples(int(names[i]), len(holders), count)
        if not len(holders):
            return np.full(count, NOBODY)
        return np.repeat(holders, equal_sizes(count, len(holders)))

    return _by_class(labels, clients, seed, rule)


def distribution(
    labels: Labels,
    clients: int,
    seed: int,
    *,
    classes_per_client: PositiveInt,
    min_per_class: NonNegativeInt,
    sigma: NonNegativeFloat,
    weights: list[list[NonNegativeFloat]] | None,
) -> Shares:
    """Client i has the classes i, i + 1, … (modulo the classes), in proportions that are given.

    Parameters
    ----------
    min_per_class
        Samples that each holder of a class gets before the rest is shared.
    sigma
        Without ``weights``: they are drawn from a log-normal distribution with mean 0 and this
        standard deviation of the logarithm (2: the power law of arXiv 1812.06127).
    weights
        A row per class, in it a number for each of its holders in the order of the clients:
        ``clients * classes_per_client / classes`` of them.
    """
    names = np.unique(labels)
    classes = len(names)
    _require_classes(classes_per_client, classes)
    if clients % classes:
        raise ConfigError(f"clients.count: {clients} is not a multiple of the {classes} classes")
    holders = clients * classes_per_client // classes
    random = np.random.default_rng(seeding.key(seed, "distribution"))
    if weights is None:
        table = random.lognormal(0.0, sigma, (classes, holders))
    elif len(weights) != classes or {len(row) for row in weights} != {holders}:
        raise ConfigError(
            f"partition.weights: needs {classes} rows of {holders} numbers, a row per class and "
            "a number per client that holds it"
        )
    elif not all(any(row) for row in weights):
        raise ConfigError("partition.weights: a row of zeros gives a class to nobody")
    else:
        table = np.array(weights)
    table = table / table.sum(1, keepdims=True)
    leftovers = np.random.default_rng(seed)

    def rule(i: int, count: int) -> Owners:
        _require_samples(int(names[i]), min_per_class * holders, count)
        mine = np.flatnonzero((i - np.arange(clients)) % classes < classes_per_client)
        sizes = np.floor(table[i] * (count - min_per_class * holders)).astype(int) + min_per_class
        rest = np.full(count - sizes.sum(), mine[leftovers.integers(0, holders)])
        return np.concatenate([np.repeat(mine, sizes), rest])

    return _by_class(labels, clients, seed, rule)


def shards(labels: Labels, clients: int, seed: int, *, shards_per_client: PositiveInt) -> Shares:
    """Samples sorted by label and cut into equal shards, ``shards_per_client`` to each client.

    Source: arXiv 1602.05629, section 3. The first shards are one sample larger where the number
    does not divide (flwr-datasets loses the rest then).
    """
    count = clients * shards_per_client
    if count > len(labels):
        raise ConfigError(
            f"partition.shards_per_client: {clients} clients with {shards_per_client} shards each "
            f"need as many samples; there are {len(labels)}"
        )
    order = shuffled_order(len(labels), seed)
    order = order[np.argsort(labels[order], kind="stable")]
    shard_owners = np.empty(count, dtype=np.int64)
    dealt = np.random.default_rng(seed).permutation(count)
    shard_owners[dealt] = np.repeat(np.arange(clients), shards_per_client)
    return by_owner(order, np.repeat(shard_owners, equal_sizes(len(labels), count)), clients)


def continuous(
    labels: Labels,
    clients: int,
    seed: int,
    *,
    strictness: Annotated[float, Field(ge=0, le=1)],
    value: str,
    pixels: Tensor,
) -> Shares:
    """Equal shares of the samples in the order of a value that each has, blurred by noise.

    Parameters
    ----------
    strictness
        σ in σ·z + (1−σ)·ε, by which samples are sorted: z is the standardised value, ε normal
        noise. 1: strictly by the value, 0: at random.
    value
        Dotted path to a function of the stored inputs that returns a number for each sample.
    """
    order = shuffled_order(len(labels), seed)
    values = np.asarray(locate(value, "partition.value")(pixels), dtype=np.float32)
    if values.shape != labels.shape or not np.isfinite(values).all():
        raise ConfigError(f"partition.value: {value} must give a finite number for each sample")
    values = values[order]
    if values.std() < 1e-6:
        raise ConfigError(f"partition.value: {value} is the same for all samples")
    noise = np.random.default_rng(seed).normal(size=len(values))
    scores = strictness * ((values - values.mean()) / values.std()) + (1 - strictness) * noise
    owners = np.empty(len(labels), dtype=np.int64)
    owners[np.argsort(scores)] = np.repeat(np.arange(clients), equal_sizes(len(labels), clients))
    return by_owner(order, owners, clients)


def brightness(pixels: Tensor) -> NDArray[np.float32]:
    """Mean of each image, for :func:`continuous`."""
    means: NDArray[np.float32] = pixels.flatten(1).numpy().mean(1, dtype=np.float32)
    return means
