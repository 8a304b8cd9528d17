"""TIES: trim, elect signs, and merge only what agrees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedwsa.merge import operator
from fedwsa.merge.states import State, is_statistic, merged, shares
from fedwsa.scope.moments import precise


@operator(needs=["base"])
def ties(
    models: Sequence[State],
    *,
    base: State,
    weights: Sequence[float] | None = None,
    density: Annotated[float, Field(gt=0, le=1)] = 0.2,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Merge differences to a base where they are large and of one sign.

    1. Trim: of each difference τ_t = θ_t − θ_0 only the largest ``density`` of all its entries, by
       absolute value over the whole model, stay (rounded up); the others become zero. Of equal
       ones those stay that come first, in the order of the base's tensors and their entries.
    2. Elect: the sign of each entry is that of Σ_t p_t τ_t; where these cancel, none.
    3. Merge: τ is the mean, by p_t, of those τ_t that are not zero and have that sign.
    4. θ = θ_0 + λ·τ.

    It trims: identical models merge to themselves only for ``density=1`` and λ = 1, or where they
    are the base. The order does not matter, to rounding.

    Source: arXiv 2306.01708 (there density 0.2, λ = 1; unweighted). Limitations: the models must
    have begun at the base; where the differences are dense in small changes, trimming loses them.

    Parameters
    ----------
    models, base, weights
        As for :func:`fedwsa.merge.task_arithmetic.task_arithmetic`; ``weights`` elect and average.
    density
        Share of the entries that stay.
    scale
        λ.
    """
    share = shares(weights, len(models))
    exact = torch.tensor(share, dtype=torch.float64)
    trims = [_trim(model, base, density) for model in models]

    def operate(name: str, tensors: list[Tensor]) -> Tensor:
        origin = precise(base[name])
        result = torch.empty(origin.shape, dtype=origin.dtype)
        least = torch.tensor([trim.least for trim in trims], dtype=torch.float64).unsqueeze(1)
        room = torch.tensor([trim.room.get(name, 0) for trim in trims]).unsqueeze(1)
        whole = (result, origin, *tensors)
        for made, begun, *ended in zip(
            *(torch.split(t.reshape(-1), _PIECE) for t in whole), strict=True
        ):
            changes = torch.stack(ended) - begun
            size = changes.abs()
            equal = size == least
            if equal.any():
                # Both are needed of the next piece: how many of the equal ones may still stay.
                equal, here = equal & (equal.cumsum(1) <= room), equal.sum(1, keepdim=True)
                room = (room - here).clamp(min=0)
            changes.masked_fill_(~(equal | (size > least)), 0.0)
            made.copy_(begun + scale * _elected(changes.double(), exact))
        return result

    return merged(models, operate, share)


_PIECE = 2**18
"""Entries at a time: what is in between takes little memory."""


def _elected(changes: Tensor, share: Tensor) -> Tensor:
    """The mean of those changes, of shape (K, n), that are not zero and have the sum's sign.

    A sum that is zero but for rounding has none: else noise would elect, by the models' order.
    """
    total = share @ changes
    noise = len(share) * torch.finfo(share.dtype).eps * (share @ changes.abs())
    agree = (changes.sign() == total.sign().masked_fill_(total.abs() <= noise, 0.0)) & (
        changes != 0
    )
    counted = share @ agree.to(share.dtype)
    return share @ (changes * agree) / counted.masked_fill(counted == 0, 1.0)


@dataclass(frozen=True)
class _Trim:
    """What stays of a difference: what is larger than ``least``, and of what equals it ``room``.

    Attributes
    ----------
    room : mapping of str to int
        Name of a tensor → how many of its entries that equal ``least`` stay, the first ones.
    """

    least: float
    room: Mapping[str, int]


def _trim(model: State, base: State, density: float) -> _Trim:
    """What stays of a model's difference to the base."""
    names = [k for k in base if base[k].is_floating_point() and not is_statistic(k)]
    changes = np.empty(sum(base[k].numel() for k in names), np.float64 if _double(base) else "f4")
    # As it is written: 0.1 of 30 is 3, though the nearest binary number makes it more.
    kept = math.ceil(Fraction(repr(float(density))) * changes.size)
    if not kept:
        return _Trim(math.inf, {})
    end = 0
    for name in names:
        begin, end = end, end + base[name].numel()
        changes[begin:end] = _change(model, base, name)
    place = changes.size - kept
    changes.partition(place)  # in place: torch.kthvalue takes four times the memory
    least = float(changes[place])
    left = kept - int((changes > least).sum())
    room = {}
    for name in names:
        room[name] = min(left, int((_change(model, base, name) == least).sum())) if left else 0
        left -= room[name]
    return _Trim(least, room)


def _change(model: State, base: State, name: str) -> NDArray[np.floating[Any]]:
    """The absolute difference of a tensor, flat."""
    change: NDArray[np.floating[Any]] = (
        (precise(model[name]) - precise(base[name])).abs_().flatten().numpy()
    )
    return change


def _double(model: State) -> bool:
    return any(model[name].dtype == torch.float64 for name in model)
