"""The weighted average of models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedwsa.merge.states import State, mean, merged, shares


def average(
    models: Sequence[State], *, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Average models entry by entry: θ = Σ_k p_k θ_k.

    Identical models merge to themselves, to the bit; the order does not matter, to rounding.

    Limitations: models that were trained apart lie in different basins, and their average is
    worse than each of them; averaging shrinks the variance of layers that do not agree.

    Parameters
    ----------
    models
        K states of the same names, shapes and dtypes. Of integers those of the first are taken.
    weights
        K non-negative numbers, for instance examples; p_k is their share. None: equal.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    ValueError
        If the weights do not add up to a positive number, or the models are not alike.
    """
    share = shares(weights, len(models))
    return merged(models, lambda name, tensors: mean(tensors, share), share)
