"""Task arithmetic: differences to a common base are added up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedwsa.merge import operator
from fedwsa.merge.states import State, merged, shares
from fedwsa.scope.moments import precise


@operator(needs=["base"])
def task_arithmetic(
    models: Sequence[State],
    *,
    base: State,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Add what each model has learned to the base: θ = θ_0 + λ·Σ_t (θ_t − θ_0).

    Identical models merge to themselves only for λ = 1/T, T of them, or where they are the base.
    With λ = 1/T it is the average. The order does not matter, to rounding.

    Source: arXiv 2212.04089. Limitations: the models must have begun at the base; for a large
    λ·T the sum leaves the region in which the base can be trusted.

    Parameters
    ----------
    models
        T states of the same names, shapes and dtypes.
    base
        θ_0, likewise.
    weights
        T non-negative numbers, for instance examples: difference t counts T·p_t times, p_t its
        share. None: each once.
    scale
        λ.
    """
    share = shares(weights, len(models))

    def operate(name: str, tensors: list[Tensor]) -> Tensor:
        origin = precise(base[name])
        total = origin.clone()
        for tensor, p in zip(tensors, share, strict=True):
            total.add_(tensor - origin, alpha=scale * p * len(models))
        return total

    return merged(models, operate, share)
