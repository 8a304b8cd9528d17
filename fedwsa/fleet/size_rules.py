"""Clients of different sizes: which models there are, and who gets which.

A *size* is a name for arguments that replace some of the model's, ``{width: 0.5}``. Who has
which follows from the configuration and the seed alone, so that servers and clients agree
without asking each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import yaml
from torch import nn

from fedwsa import seeding
from fedwsa.config.component import Component
from fedwsa.models import InputShape, build_model, flops
from fedwsa.remembered import in_run

WHOLE = "model"
"""Name of the size that the configuration's ``model`` has as it stands."""

SPEED = "speed"
"""Value of ``clients.sizes`` by which each client gets what its device can carry."""

_NAME = re.compile(r"[A-Za-z][\w.-]{0,39}")  # names of files and of arrays begin with it

Overrides = Mapping[str, Mapping[str, Any]]
"""Name of a size → arguments that replace those of the model."""


def check_names(sizes: Overrides) -> None:
    """Refuse names that cannot be part of a file's name, and arguments that are no model's.

    Raises
    ------
    ValueError
        Names the size.
    """
    for name, arguments in sizes.items():
        if name == WHOLE or not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot name a size: it must begin with a letter, have at most 40 "
                f"letters, digits, '_', '.' and '-', and not be {WHOLE!r}, which is the model as "
                "it stands"
            )
        if "_target_" in arguments:
            raise ValueError(f"{name}._target_: all sizes are of one kind, that of model")


def check_wish(wish: object) -> object:
    """Check the form of ``clients.sizes``: shares, a list of names, or ``speed``.

    Shares are a mapping, or its text, which another mapping replaces where Hydra would merge two.

    Raises
    ------
    ValueError
        Says what is allowed.
    """
    if isinstance(wish, str) and wish.startswith("{"):
        wish = yaml.safe_load(wish)
    if wish is None or wish == SPEED:
        return wish
    if isinstance(wish, Mapping) and wish:
        for name, share in wish.items():
            number = isinstance(share, int | float) and not isinstance(share, bool)
            if not number or not 0 <= share < float("inf"):
                raise ValueError(f"the share of {name} must be zero or a positive number")
        if not sum(wish.values()) > 0:
            raise ValueError("the shares must have a positive sum")
        return wish
    if isinstance(wish, list) and wish and all(isinstance(name, str) for name in wish):
        return wish
    raise ValueError(
        f"must be null, {SPEED}, shares as {{S: 0.5, L: 0.5}}, or a list with a size per client"
    )


def names_in(wish: object, sizes: Overrides) -> list[str]:
    """The sizes that take part, each once.

    Raises
    ------
    ValueError
        If one of them does not exist.
    """
    if wish is None:
        return [WHOLE]
    if wish == SPEED:
        return list(sizes)
    assert isinstance(wish, Mapping | list)
    for name in wish:
        if name != WHOLE and name not in sizes:
            raise ValueError(f"there is no size {name}; there are {', '.join([*sizes, WHOLE])}")
    return list(dict.fromkeys(wish))


def by_share(shares: Mapping[str, float], clients: int, seed: int) -> list[str]:
    """Sizes of clients 0, 1, …: counts by largest remainder, dealt out by (seed, "sizes").

    Shares are normalised; among equal remainders the size that is named first gets the client.

    Raises
    ------
    ValueError
        If a size with a positive share ends with no client.
    """
    # As written, not as rounded: of ten clients 0.3 are three.
    exact = {name: Fraction(str(share)) for name, share in shares.items()}
    total = sum(exact.values())
    quotas = {name: clients * share / total for name, share in exact.items()}
    counts = {name: floor(quota) for name, quota in quotas.items()}
    left = clients - sum(counts.values())
    for name in sorted(quotas, key=lambda name: counts[name] - quotas[name])[:left]:
        counts[name] += 1
    for name, share in shares.items():
        if share > 0 and not counts[name]:
            raise ValueError(
                f"a share of {share:g} for {name} is none of {clients} clients; "
                "give it more, give it 0, or take more clients"
            )
    dealt = [name for name, count in counts.items() for _ in range(count)]
    order = np.random.default_rng(seeding.key(seed, "sizes")).permutation(clients)
    return [dealt[i] for i in order]


def by_speed(costs: Mapping[str, float], speeds: Sequence[float]) -> list[str]:
    """Sizes of clients 0, 1, …: the largest that each one's device carries.

    Parameters
    ----------
    costs
        Of each size, in any unit; see :func:`forward_flops`.
    speeds
        Of each client's device (:func:`fedwsa.fleet.systems.speed`): the largest cost, as a part of
        the largest size's, that it affords. Nobody gets less than the smallest.
    """
    dearest = max(costs.values())
    ordered = sorted(costs, key=lambda name: costs[name])
    sizes = []
    for speed in speeds:
        affordable = [name for name in ordered if costs[name] <= speed * dearest]
        sizes.append(affordable[-1] if affordable else ordered[0])
    return sizes


def forward_flops(model: nn.Module, shape: InputShape) -> float:
    """Floating-point operations of a forward pass, per example."""
    batch = 2  # a norm over the batch has none over a single one
    return flops.forward_flops(model, shape, batch) / batch


@in_run(64)
def model_cost(component: Component, shape: InputShape, classes: int) -> float:
    """Floating-point operations of a model's forward pass, per example."""
    return forward_flops(build_model(component, shape, classes, seed=0), shape)


def by_wish(wish: object, clients: int, seed: int) -> list[str]:
    """The size of each client, from shares or a list; null: all have the model as it stands.

    Raises
    ------
    ValueError
        If a list has another length than there are clients, or a share is nobody.
    """
    if wish is None:
        return [WHOLE] * clients
    if isinstance(wish, Mapping):
        return by_share(wish, clients, seed)
    assert isinstance(wish, list)
    if len(wish) != clients:
        raise ValueError(f"{len(wish)} sizes are listed for {clients} clients")
    return list(wish)


def hidden_rate(part: Mapping[str, tuple[int, ...]], whole: Mapping[str, tuple[int, ...]]) -> float:
    """Hidden units of a size, as a part of the largest one's; 1 where no layer is narrower.

    Parameters
    ----------
    part, whole
        Name of an array → its shape, of the size and of the largest.
    """
    pairs = [
        (shape[0], whole[name][0])
        for name, shape in part.items()
        if name in whole and len(shape) >= 2 and shape[0] != whole[name][0]
    ]
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs) if pairs else 1.0
