"""Moving weights to a given scope without training: by Gaussian, by range, by percentile range.

None of the maps keeps the function that a network computes; they make models alike before, or
right after, their weights are averaged.

References
----------
Weight Scope Alignment, arXiv 2408.12237; the Gaussian map and the percentiles are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedwsa.scope.moments import exact_moments
from fedwsa.scope.weight_scope import (
    DEFAULT_FLOOR,
    WeightScope,
    choose,
    require_same_layers,
    scoped_layers,
)


@dataclass(frozen=True, eq=False)
class WeightRange:
    """Lowest and highest weight of each layer, or two percentiles in their place.

    Attributes
    ----------
    names : tuple of str
        The L layers.
    low, high : Tensor
        Shape ``(L,)``, float64.
    """

    names: tuple[str, ...]
    low: Tensor
    high: Tensor

    @classmethod
    @torch.no_grad()
    def measure(
        cls,
        model: nn.Module | Mapping[str, Tensor],
        layers: str | None = None,
        percentile: float = 0.0,
    ) -> WeightRange:
        """Measure a model or a state dict.

        Parameters
        ----------
        model, layers
            See :meth:`WeightScope.measure`.
        percentile
            The range goes from this percentile to 100 minus it, in [0, 50). Zero is minimum
            and maximum, which a single outlier rules.

        Raises
        ------
        ValueError
            If ``percentile`` is out of range or no layer takes part.
        """
        if not 0.0 <= percentile < 50.0:
            raise ValueError(f"percentile must be in [0, 50); got {percentile}")
        tensors = model.state_dict() if isinstance(model, nn.Module) else model
        names = scoped_layers(tensors, layers)
        flat = (tensors[n].detach().flatten().cpu() for n in names)
        ends = [_ends(t.to(torch.promote_types(t.dtype, torch.float32)), percentile) for t in flat]
        return cls(
            tuple(names), torch.stack([e[0] for e in ends]), torch.stack([e[1] for e in ends])
        )

    @classmethod
    def fuse(
        cls, ranges: Sequence[WeightRange], rule: Literal["mean", "union"] = "mean"
    ) -> WeightRange:
        """One range for many: the mean of the ends, or the union."""
        require_same_layers(ranges)
        low = torch.stack([r.low for r in ranges])
        high = torch.stack([r.high for r in ranges])
        if choose(Literal["mean", "union"], rule, "rule") == "mean":
            return cls(ranges[0].names, low.mean(0), high.mean(0))
        return cls(ranges[0].names, low.amin(0), high.amax(0))


@torch.no_grad()
def rescale_gaussian(
    tensors: Mapping[str, Tensor], target: WeightScope, floor: float = DEFAULT_FLOOR
) -> dict[str, Tensor]:
    """Move each layer of ``target`` to that scope: w' = μ̃ + (σ̃/σ)·(w − μ).

    The function that the network computes changes. A layer whose σ is below ``floor`` is only
    shifted. Tensors that ``target`` does not name, or without entries, are returned as they are.
    """
    result = dict(tensors)
    for name, m, s in zip(target.names, target.mean, target.std, strict=True):
        if not tensors[name].numel():
            continue
        [mean], [variance] = exact_moments([tensors[name]])
        gain = s / variance.sqrt() if variance > floor**2 else torch.ones_like(s)
        result[name] = _affine(tensors[name], gain, m - gain * mean)
    return result


@torch.no_grad()
def rescale_range(
    tensors: Mapping[str, Tensor], target: WeightRange, percentile: float = 0.0
) -> dict[str, Tensor]:
    """Map each layer's own range [lo_k, hi_k] linearly to that of ``target``: w' = a·w + c.

    ``percentile`` is the one that ``target`` was measured with. A constant layer is shifted to
    the middle. Tensors that ``target`` does not name, or without entries, are returned as they are.
    """
    result = dict(tensors)
    for name, to_low, to_high in zip(target.names, target.low, target.high, strict=True):
        if not tensors[name].numel():
            continue
        own = WeightRange.measure({name: tensors[name]}, percentile=percentile)
        low, high = own.low[0], own.high[0]
        if high > low:
            gain = (to_high - to_low) / (high - low)
            shift = to_low - gain * low
        else:
            gain, shift = torch.ones_like(low), (to_low + to_high) / 2 - low
        result[name] = _affine(tensors[name], gain, shift)
    return result


def _affine(weight: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """``gain·weight + shift``; the weight itself, to the bit, where that is the identity."""
    if gain == 1.0 and shift == 0.0:
        return weight.clone()
    return weight * gain.item() + shift.item()


def _ends(values: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """The two percentiles of a flat tensor (``torch.quantile`` refuses over 16 M entries)."""
    if percentile == 0.0:
        low, high = values.aminmax()
        return low.double(), high.double()
    n = values.numel()
    rank = min(n, max(1, round(percentile / 100 * (n - 1)) + 1))
    sorted_at = np.partition(values.numpy(), (rank - 1, n - rank))  # torch's kthvalue: 4 x memory
    low, high = sorted_at[rank - 1], sorted_at[n - rank]
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
