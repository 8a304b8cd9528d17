"""The range variant of weight scope alignment: common minimum and maximum, then the average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from fedwsa.merge import operator
from fedwsa.merge.states import Align, State, mean, merged, moved, shares
from fedwsa.merge.wsa import layers_of
from fedwsa.scope.rescale import WeightRange, rescale_range


def rescaled(
    models: Sequence[State], *, weights: Sequence[float] | None = None, **options: Any
) -> list[dict[str, Tensor]]:
    """Each model alone, moved as :func:`common_range` moves it; arguments as there."""
    return moved(models, _align(models, **options))


@operator(aligned=rescaled)
def common_range(
    models: Sequence[State],
    *,
    weights: Sequence[float] | None = None,
    percentile: Annotated[float, Field(ge=0, lt=50)] = 0.0,
    rule: Literal["mean", "union"] = "mean",
    layers: str | None = None,
) -> dict[str, Tensor]:
    """Map each layer of the models linearly to one range, then average.

    1. Measure lowest and highest weight of each layer of each model, or two percentiles.
    2. The common range is the mean of the ends, or the union of the ranges.
    3. Map each layer's own range there, w' = a·w + c, and average: Σ_k p_k w'_k.

    Identical models merge to themselves, to rounding; the order does not matter.

    Source: summaries of arXiv 2408.12237; percentiles are ours. Limitations: a single outlier
    rules minimum and maximum (take ``percentile``); c ≠ 0 moves all weights of a layer, and what
    the network computes with them.

    Parameters
    ----------
    models, weights
        As for :func:`fedwsa.merge.average.average`; the common range does not know the weights.
    percentile
        The range goes from this percentile to 100 minus it; 0: minimum and maximum.
    rule
        Of the common range.
    layers
        A regular expression that narrows the layers; the others are only averaged.
    """
    share = shares(weights, len(models))
    align = _align(models, percentile, rule, layers)
    return merged(models, lambda name, tensors: mean(align(name, tensors), share), share)


def _align(
    models: Sequence[State],
    percentile: float = 0.0,
    rule: Literal["mean", "union"] = "mean",
    layers: str | None = None,
) -> Align:
    chosen = layers_of(models[0], layers)

    def align(name: str, tensors: list[Tensor]) -> list[Tensor]:
        if name not in chosen:
            return tensors
        own = [{name: tensor} for tensor in tensors]
        target = WeightRange.fuse(
            [WeightRange.measure(t, percentile=percentile) for t in own], rule
        )
        return [rescale_range(t, target, percentile)[name] for t in own]

    return align
