"""Multi-stage fusion: models that arrive one after another."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from fedwsa.merge.states import State, mean, merged, shares
from fedwsa.merge.wsa import layers_of, to_scope
from fedwsa.scope.weight_scope import DEFAULT_FLOOR, Fusion, WeightScope


def stages(
    models: Sequence[State],
    *,
    weights: Sequence[float] | None = None,
    sizes: Sequence[PositiveInt] | None = None,
    fusion: Fusion = "moments",
    layers: str | None = None,
    floor: PositiveFloat = DEFAULT_FLOOR,
) -> dict[str, Tensor]:
    """Merge models in stages, with the scopes of all so far fused into one target at each.

    At each stage, with the model M merged so far, its target scope Ñ and its weight W:

    1. The target becomes the fusion of Ñ (weight W) and the scopes of the models that arrive.
    2. M and the new models are moved to it, as in :func:`fedwsa.merge.wsa.wsa`, and averaged by
       their weights; W grows by those of the new ones.

    Only M, Ñ and W are kept between stages. By the rule ``moments`` the last target is that of all
    models at once, in whatever order they came; M is not, since each stage restores the variance
    that the average before has lost. With all models in one stage it is ``wsa``. Identical models
    merge to themselves, to rounding.

    Source: arXiv 2408.12237, multi-stage fusion; that scopes are fused by moments, and M rescaled
    at each stage, is ours.

    Parameters
    ----------
    models, weights
        As for :func:`fedwsa.merge.average.average`, in the order in which they come.
    sizes
        How many come at each stage; None: one at a time.
    fusion, layers, floor
        As for :func:`fedwsa.merge.wsa.wsa`.

    Raises
    ------
    ValueError
        If the sizes are not those of the models together.
    """
    share = shares(weights, len(models))
    ends = _ends(sizes, len(models))
    chosen = layers_of(models[0], layers)

    def operate(name: str, tensors: list[Tensor]) -> Tensor:
        if name not in chosen:
            return mean(tensors, share)
        begin = 0
        made: list[tuple[Tensor, WeightScope, float]] = []  # of the stages so far: M, Ñ, W
        for end in ends:
            arriving = zip(tensors[begin:end], share[begin:end], strict=True)
            counted = [(t, WeightScope.measure({name: t}), w) for t, w in arriving if w]
            begin = end
            if not counted:
                continue
            together, scopes, own = zip(*made, *counted, strict=True)
            target, so_far = WeightScope.fuse(scopes, own, fusion), sum(own)
            moved = to_scope(name, together, target, floor)
            made = [(mean(moved, [w / so_far for w in own]), target, so_far)]
        return made[0][0]

    return merged(models, operate, share)


def _ends(sizes: Sequence[int] | None, count: int) -> list[int]:
    sizes = [1] * count if sizes is None else list(sizes)
    if sum(sizes) != count:
        raise ValueError(f"sizes: stages of {sizes} models are not the {count} that there are")
    return [sum(sizes[: i + 1]) for i in range(len(sizes))]
