"""The average of tensors that each cover a part of a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedwsa.models.architecture import Window


def overlap(old: Tensor, parts: Sequence[tuple[Tensor, float | Tensor, Window]]) -> Tensor:
    """Σ w x / Σ w of each entry over the parts that have it; the old value where none has.

    Each x is multiplied by w / Σ w, which is 1 where one part alone has an entry: exact there.

    Parameters
    ----------
    old
        The whole, as it was.
    parts
        Values x, weight w, and where they lie. A weight for each row has the shape ``(R, 1, …)``;
        where all are zero, nobody has the row.

    Returns
    -------
    Tensor
        In the shape and dtype of ``old``.
    """
    rows = any(isinstance(weight, Tensor) for _, weight, _ in parts)
    if len(parts) == 1 and parts[0][2] is None and not rows:
        return parts[0][0].to(old.dtype)
    # Half precision adds up in single, whole numbers in double.
    least = torch.float32 if old.is_floating_point() else torch.float64
    wide = torch.promote_types(old.dtype, least)
    total, mean = (torch.zeros(old.shape, dtype=wide) for _ in range(2))
    for _, weight, where in parts:
        total[... if where is None else where] += weight
    for part, weight, where in parts:
        index = ... if where is None else where
        mean[index] += (weight / total[index]).to(wide).mul_(part)
    if rows or not any(where is None for _, _, where in parts):
        mean = torch.where(total > 0, mean, old.to(wide))
    return mean.to(old.dtype)


def row_mean(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ w x / Σ w of each row, w a number for each row; zero where all weights are.

    Parameters
    ----------
    parts
        Values x of shape ``(R, …)``, weights of shape ``(R,)``.

    Returns
    -------
    Tensor
        In the shape of x, in single precision at least.
    """
    first = parts[0][0]
    wide = torch.promote_types(first.dtype, torch.float32)
    total = torch.stack([w for _, w in parts]).sum(0)
    mean = torch.zeros(first.shape, dtype=wide)
    for x, weight in parts:
        share = torch.where(total > 0, weight / total, 0.0)
        mean += by_row(share, x) * x
    return mean


def by_row(weights: Tensor, like: Tensor) -> Tensor:
    """Weights of rows, shape ``(R,)``, to be multiplied with a tensor that has them first."""
    return weights.view(-1, *[1] * (like.dim() - 1))
