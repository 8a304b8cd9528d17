"""TIES: trim, elect signs, and merge only what agrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedwsa.merge.states import State, is_statistic, merged, shares
from fedwsa.moments import precise


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
       absolute value over the whole model, stay; the others become zero.
    2. Elect: the sign of each entry is that of Σ_t p_t τ_t.
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
    smallest = [_threshold(model, base, density) for model in models]

    def operate(name: str, tensors: list[Tensor]) -> Tensor:
        origin = precise(base[name])
        result = torch.empty(origin.shape, dtype=origin.dtype)
        least = origin.new_tensor(smallest).unsqueeze(1)
        whole = (result, origin, *tensors)
        for made, begun, *ended in zip(
            *(torch.split(t.reshape(-1), _PIECE) for t in whole), strict=True
        ):
            changes = torch.stack(ended) - begun
            changes.masked_fill_(changes.abs() < least, 0.0)
            made.copy_(begun + scale * _elected(changes, origin.new_tensor(share)))
        return result

    return merged(models, operate, share)


_PIECE = 2**18
"""Entries at a time: what is in between takes little memory."""


def _elected(changes: Tensor, share: Tensor) -> Tensor:
    """The mean of those changes, of shape (K, n), that are not zero and have the sum's sign."""
    agree = (changes.sign() == (share @ changes).sign()) & (changes != 0)
    counted = share @ agree.to(share.dtype)
    return share @ (changes * agree) / counted.masked_fill(counted == 0, 1.0)


def _threshold(model: State, base: State, density: float) -> float:
    """The smallest absolute difference that stays."""
    names = [k for k in model if model[k].is_floating_point() and not is_statistic(k)]
    changes = np.empty(sum(model[k].numel() for k in names), np.float64 if _double(model) else "f4")
    end = 0
    for name in names:
        change = (precise(model[name]) - precise(base[name])).abs_().flatten()
        begin, end = end, end + change.numel()
        changes[begin:end] = change.numpy()
    place = changes.size - max(1, math.ceil(density * changes.size))
    changes.partition(place)  # in place: torch.kthvalue takes four times the memory
    return float(changes[place])


def _double(model: State) -> bool:
    return any(model[name].dtype == torch.float64 for name in model)
