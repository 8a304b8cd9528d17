"""What operators ask of the Fisher information of models: that it fits, and where it is zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fedwsa.merge.states import State


def require_fishers(
    fishers: Sequence[State], models: Sequence[State], share: Sequence[float] | None = None
) -> bool:
    """Refuse what cannot be the Fisher information of models; say whether there is any at all.

    Parameters
    ----------
    fishers
        One for each model, all with the same names. Tensors that they do not name have none.
    share
        What each model counts.

    Returns
    -------
    bool
        Whether an entry is above zero in a model that counts.

    Raises
    ------
    ValueError
        Names the first tensor that is missing, unknown, of another shape, or has an entry that
        is negative, NaN or infinite, and the model, counted from 1.
    """
    if len(fishers) != len(models):
        raise ValueError(f"{len(models)} models need as many Fishers; got {len(fishers)}")
    found = False
    for number, fisher in enumerate(fishers, 1):
        if missing := [name for name in fishers[0] if name not in fisher]:
            raise ValueError(f"Fisher {number} lacks {missing[0]}, which Fisher 1 has")
        for name in fisher:
            if name not in fishers[0]:
                raise ValueError(f"Fisher {number} has {name}, which Fisher 1 lacks")
            largest = _largest(name, fisher[name], models[0], number)
            found |= largest > 0 and (share is None or share[number - 1] > 0)
    return found


def _largest(name: str, fisher: Tensor, model: State, number: int) -> float:
    """The largest entry of a tensor that is fit to be Fisher information."""
    if name not in model:
        raise ValueError(f"Fisher {number} has {name}, which the models lack")
    if fisher.shape != model[name].shape:
        shapes = tuple(fisher.shape), tuple(model[name].shape)
        raise ValueError(
            f"{name}: Fisher {number} has the shape {shapes[0]}, the model {shapes[1]}"
        )
    if not fisher.numel():
        return 0.0
    low, high = (float(end) for end in fisher.aminmax())  # both are NaN if anything is
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"{name}: Fisher {number} has negative, NaN or infinite entries")
    return high


def unseen(fishers: Sequence[State]) -> tuple[int, int]:
    """How many entries have zero Fisher information in all models (dead units), and of how many."""
    zero, entries = 0, 0
    for name in fishers[0]:
        total = fishers[0][name] > 0
        for fisher in fishers[1:]:
            total = total | (fisher[name] > 0)
        zero, entries = zero + total.numel() - int(total.sum()), entries + total.numel()
    return zero, entries
