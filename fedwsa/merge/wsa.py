"""Weight scope alignment before the average, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import PositiveFloat
from torch import Tensor

from fedwsa.merge import operator
from fedwsa.merge.states import Align, State, mean, merged, moved, shares
from fedwsa.scope.rescale import rescale_gaussian
from fedwsa.scope.weight_scope import DEFAULT_FLOOR, Fusion, WeightScope, scoped_layers


def rescaled(
    models: Sequence[State], *, weights: Sequence[float] | None = None, **options: Any
) -> list[dict[str, Tensor]]:
    """Each model alone, moved as :func:`wsa` moves it; arguments as there."""
    return moved(models, _align(models, shares(weights, len(models)), **options))


@operator(aligned=rescaled)
def wsa(
    models: Sequence[State],
    *,
    weights: Sequence[float] | None = None,
    fusion: Fusion = "moments",
    layers: str | None = None,
    floor: PositiveFloat = DEFAULT_FLOOR,
) -> dict[str, Tensor]:
    """Bring each layer of the models to one scope, then average.

    1. Measure the scope N(μ_k, σ_k²) of each layer of each model.
    2. Fuse the scopes into one target, see :meth:`fedwsa.scope.weight_scope.WeightScope.fuse`.
    3. Move each layer there, w' = μ̃ + (σ̃/σ_k)·(w − μ_k), and average: Σ_k p_k w'_k.

    Identical models merge to themselves, to rounding; the order does not matter.

    Source: arXiv 2408.12237, which aligns scopes in training; the map is its training-free twin,
    ours. Limitations: the map does not keep what a network computes (behind a norm layer it nearly
    does); where scopes agree already it does nothing, and the average shrinks variances as before.

    Parameters
    ----------
    models, weights
        As for :func:`fedwsa.merge.average.average`.
    fusion
        How variances are fused.
    layers
        A regular expression that narrows the layers; the others are only averaged.
    floor
        A layer whose σ is below is only shifted.
    """
    share = shares(weights, len(models))
    align = _align(models, share, fusion, layers, floor)
    return merged(models, lambda name, tensors: mean(align(name, tensors), share), share)


def _align(
    models: Sequence[State],
    share: Sequence[float],
    fusion: Fusion = "moments",
    layers: str | None = None,
    floor: float = DEFAULT_FLOOR,
) -> Align:
    chosen = layers_of(models[0], layers)

    def align(name: str, tensors: list[Tensor]) -> list[Tensor]:
        if name not in chosen:
            return tensors
        return to_scope(name, tensors, fused(name, tensors, share, fusion), floor)

    return align


def layers_of(model: State, layers: str | None) -> set[str]:
    """The layers that have a scope."""
    return set(scoped_layers(model, layers))


def fused(
    name: str, tensors: Sequence[Tensor], share: Sequence[float], fusion: Fusion
) -> WeightScope:
    """The scope that one layer of all models is to have."""
    scopes = [WeightScope.measure({name: tensor}) for tensor in tensors]
    return WeightScope.fuse(scopes, share, fusion)


def to_scope(
    name: str, tensors: Sequence[Tensor], target: WeightScope, floor: float
) -> list[Tensor]:
    """One layer of each model, moved to a scope."""
    return [rescale_gaussian({name: tensor}, target, floor)[name] for tensor in tensors]
