"""UGM: merging by uncertainty-based gradient matching."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from fedwsa.merge import operator
from fedwsa.merge.fisher_checks import require_fishers
from fedwsa.merge.states import State, mean, merged, shares
from fedwsa.scope.moments import precise


@operator(needs=["base", "fishers", "base_fisher"])
def ugm(
    models: Sequence[State],
    *,
    base: State,
    fishers: Sequence[State],
    weights: Sequence[float] | None = None,
    base_fisher: State | None = None,
    scale: PositiveFloat = 1.0,
    base_weight: NonNegativeFloat = 1.0,
    prior: NonNegativeFloat = 0.01,
) -> dict[str, Tensor]:
    """Add what each model has learned to the base, weighted by how sure it is of it.

    θ = θ_0 + λ·Σ_t (s_t F_t + H_0)/H̄ ⊙ (θ_t − θ_0), with H_0 = s_0 F_0 + δ_0 and
    H̄ = λ·Σ_t s_t F_t + H_0.

    1. s_t F_t is the curvature of the loss that model t was trained on, summed over its samples;
       H_0 that of what held it at the base.
    2. Each difference to the base counts by its model's whole curvature, as a part of that of the
       joint problem. Where all losses are quadratic with these diagonal curvatures, and each θ_t
       is the minimum of its loss and the hold of the base, θ is the minimum of λ times all losses
       and the hold of the base together.
    3. Where H̄ is zero (no model and no prior says anything) an entry takes the mean by shares of
       the weights; :func:`fedwsa.merge.fisher_checks.unseen` counts those without any F_t.
       So do tensors that the Fishers do not name: BatchNorm's statistics and other buffers.

    F_t = 0 gives task arithmetic, H_0 = 0 Fisher-weighted averaging, for any λ and base.
    Identical models merge to themselves only for λ = 1/T, for H_0 = 0, or where they are the base:
    otherwise the more models learned the same, the further it goes. The order does not matter, to
    rounding.

    Source: arXiv 2310.12808, with a diagonal Fisher for the Hessians. Limitations: the models
    must have begun at the base, and not so far away that its curvature says nothing there; with
    T models and a large δ_0 the changes add up as in task arithmetic, so that λ wants to be
    smaller than 1.

    Parameters
    ----------
    models
        T states of the same names, shapes and dtypes.
    base
        θ_0, likewise.
    fishers
        F_t of each model, the mean over its samples.
    weights
        s_t, the numbers of samples, as they are: their size matters beside H_0. None: 1 each, so
        that δ_0 is in units of a mean Fisher information.
    base_fisher
        F_0; None: zero.
    scale
        λ.
    base_weight
        s_0, how many samples the base was trained on; without ``base_fisher`` of no effect.
    prior
        δ_0; 0: Fisher-weighted averaging, without ``base_fisher``.

    Raises
    ------
    ValueError
        If a Fisher does not fit, or all are zero without a prior.
    """
    share = shares(weights, len(models))
    counts = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    known = require_fishers(fishers, models, share)
    if base_fisher is not None:
        known |= _require_base_fisher(base_fisher, base, base_weight, fishers[0])
    if not known and not prior:
        raise ValueError("all Fisher information is zero: give a prior above 0, or average")

    def operate(name: str, tensors: list[Tensor]) -> Tensor:
        plain = mean(tensors, share)
        if name not in fishers[0]:
            return plain
        origin = precise(base[name])
        hold = torch.full_like(origin, prior)  # H_0
        if base_fisher is not None:
            hold.add_(precise(base_fisher[name]), alpha=base_weight)
        total, change = hold.clone(), torch.zeros_like(origin)
        for tensor, own, count in zip(tensors, fishers, counts, strict=True):
            curvature = count * precise(own[name])
            total.add_(curvature, alpha=scale)
            change.add_((curvature + hold) * (tensor - origin), alpha=scale)
        return torch.where(total > 0, origin + change / total, plain)

    return merged(models, operate, share)


def _require_base_fisher(fisher: State, base: State, weight: float, expected: State) -> bool:
    known = require_fishers([fisher], [base], [weight])
    if missing := [name for name in expected if name not in fisher]:
        raise ValueError(f"the base's Fisher lacks {missing[0]}, which the models' have")
    return known
