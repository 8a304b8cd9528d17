"""Averaging by Fisher information: each weight by how sure each model is of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from fedwsa.merge import operator
from fedwsa.merge.fisher_checks import require_fishers
from fedwsa.merge.states import State, mean, merged, shares
from fedwsa.scope.moments import precise


@operator(needs=["fishers"])
def fisher(
    models: Sequence[State],
    *,
    fishers: Sequence[State],
    weights: Sequence[float] | None = None,
    prior: NonNegativeFloat = 0.0,
) -> dict[str, Tensor]:
    """Average entry by entry, weighted by Fisher information.

    θ = Σ_t s_t (F_t + δ) θ_t / Σ_t s_t (F_t + δ).

    1. Weigh each entry of each model by its share and its diagonal Fisher information.
    2. Average. An entry without any in all models (δ = 0) takes the mean by shares;
       :func:`fedwsa.merge.fisher_checks.unseen` counts them. So do tensors that the Fishers
       do not name: BatchNorm's statistics and other buffers.

    Identical models merge to themselves, to the bit; the order does not matter, to rounding.

    Source: arXiv 2111.09832, with F_t the mean over a model's samples; δ is ours. It is the
    most probable θ where each model is the mode of a Gaussian with precision s_t·F_t. Limitations:
    the models must lie in one basin, where these Gaussians hold; correlations are neglected.

    Parameters
    ----------
    models
        T states of the same names, shapes and dtypes.
    fishers
        F_t of each, by name.
    weights
        T non-negative numbers, for instance examples; s_t is their share. None: equal.
    prior
        δ, in units of F; the larger, the nearer to the mean by shares.

    Raises
    ------
    ValueError
        If a Fisher does not fit, or all are zero without a prior.
    """
    share = shares(weights, len(models))
    if not require_fishers(fishers, models, share) and not prior:
        raise ValueError("all Fisher information is zero: give a prior above 0, or average")

    def operate(name: str, tensors: list[Tensor]) -> Tensor:
        if name not in fishers[0]:
            return mean(tensors, share)
        weighed = [p * (precise(own[name]) + prior) for p, own in zip(share, fishers, strict=True)]
        total = torch.stack(weighed).sum(0)
        # From the first model, so that identical ones stay as they are, to the bit.
        result = tensors[0].clone()
        for tensor, weight, p in zip(tensors[1:], weighed[1:], share[1:], strict=True):
            part = torch.where(total > 0, weight / total, p)
            result += part * (tensor - tensors[0])
        return result

    return merged(models, operate, share)
