"""What all operators share: state dicts that fit together, shares, sums in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedwsa.scope.moments import precise

State = Mapping[str, Tensor]
"""Tensors by name; maybe read from a file at each access."""

_KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_STATISTICS = ("running_mean", "running_var")


def is_statistic(name: str) -> bool:
    """Whether a tensor is BatchNorm's: it belongs to the weights it was measured with."""
    return name.rpartition(".")[2] in _STATISTICS


def shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """What each of the models counts; the sum is one.

    Parameters
    ----------
    weights
        Such as numbers of examples; None: all the same.

    Raises
    ------
    ValueError
        If there are no models, or not as many as weights, one is negative, or the sum is not
        positive, or beyond all numbers.
    """
    if not count:
        raise ValueError("there is nothing to merge")
    given = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(given) != count:
        raise ValueError(f"{count} models need as many weights; got {len(given)}")
    if any(not math.isfinite(w) or w < 0 for w in given) or not 0 < sum(given) < math.inf:
        raise ValueError(f"weights must be non-negative with a positive, finite sum; got {given}")
    return [w / sum(given) for w in given]


def require_alike(models: Sequence[State]) -> None:
    """Refuse models that cannot be merged.

    Raises
    ------
    ValueError
        Names the first tensor that is missing, too many, of another shape or dtype, or has NaN
        or infinite entries, and the model, counted from 1.

    See Also
    --------
    require_same : masks must be the same in all as well.
    """
    _require_names(models)
    first = models[0]
    for number, model in enumerate(models, 1):
        for name in model:
            _require_form(name, model[name], first[name], number)
            _require_values(name, model[name], number)


def require_same(models: Sequence[State]) -> None:
    """Refuse models that are :func:`require_alike` where their masks, orders or tables differ.

    These are integers and booleans; weights are of no use with those of another model.

    Raises
    ------
    ValueError
        Names the first tensor that differs, and the model, counted from 1.
    """
    for name, tensor in models[0].items():
        if not tensor.is_floating_point():
            _require_same(name, [model[name] for model in models])


def _require_names(models: Sequence[State]) -> None:
    if not models:
        raise ValueError("there is nothing to merge")
    first = models[0]
    for number, model in enumerate(models, 1):
        if not isinstance(model, Mapping):
            kind = type(model).__name__
            raise ValueError(f"model {number} must be a state dict, not {kind}: model.state_dict()")
        for name in first:
            if name not in model:
                raise ValueError(f"model {number} lacks {name}, which model 1 has")
        for name in model:
            if name not in first:
                raise ValueError(f"model {number} has {name}, which model 1 lacks")


def _read(models: Sequence[State], name: str) -> list[Tensor]:
    """The tensors of a name, which must be of one shape and dtype."""
    tensors = [model[name] for model in models]
    for number, tensor in enumerate(tensors, 1):
        _require_form(name, tensor, tensors[0], number)
    return tensors


def _require_form(name: str, tensor: Tensor, expected: Tensor, number: int) -> None:
    if tensor.shape != expected.shape:
        raise ValueError(
            f"{name}: model {number} has the shape {tuple(tensor.shape)}, "
            f"model 1 {tuple(expected.shape)}"
        )
    if tensor.is_complex():
        raise ValueError(f"{name}: complex weights cannot be merged")
    if tensor.dtype != expected.dtype:
        kinds = [str(t.dtype).removeprefix("torch.") for t in (tensor, expected)]
        raise ValueError(f"{name}: model {number} is {kinds[0]}, model 1 {kinds[1]}")


def _require_values(name: str, tensor: Tensor, number: int) -> None:
    if not tensor.is_floating_point() or not tensor.numel():
        return
    if tensor.dtype not in _KINDS:
        raise ValueError(f"{name}: weights of {str(tensor.dtype)[6:]} cannot be merged")
    # Twenty times faster than isfinite().all(); both ends are NaN if anything is.
    if not all(math.isfinite(float(end)) for end in tensor.aminmax()):
        raise ValueError(f"{name}: model {number} has NaN or infinite entries")


def merged(
    models: Sequence[State],
    operate: Callable[[str, list[Tensor]], Tensor],
    share: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Operate on each weight of the models, reading tensor by tensor.

    BatchNorm's statistics are averaged on purpose, whatever the operator: beyond the average a
    variance may become negative. Integers and booleans have no average: single numbers (its counts
    of batches) are those of the first model, others must be the same in all.

    Parameters
    ----------
    operate
        Name and K tensors in single precision or better → one tensor of the same shape; its dtype
        becomes that of the models.
    share
        What each model counts in the average of statistics; None: the same.

    Raises
    ------
    ValueError
        If the models do not have the same names, shapes and dtypes, or differ in an integer or
        boolean tensor.
    """
    _require_names(models)
    share = shares(share, len(models))
    result = {}
    for name in models[0]:
        first, *_ = given = _read(models, name)
        if not first.is_floating_point():
            _require_same(name, given)
            result[name] = first.clone()
            continue
        tensors = [precise(tensor) for tensor in given]
        made = mean(tensors, share) if is_statistic(name) else operate(name, tensors)
        result[name] = made.to(first.dtype)
    return result


def _require_same(name: str, tensors: Sequence[Tensor]) -> None:
    """Refuse masks, orders or tables that differ: weights are of no use with another one."""
    for number, tensor in enumerate(tensors, 1):
        if tensor.dim() and not torch.equal(tensor, tensors[0]):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{name}: model {number} has other values than model 1, and {kind} tensors have no "
                "average: models that share them (one seed) can be merged"
            )


Align = Callable[[str, list[Tensor]], list[Tensor]]
"""Name and K tensors in single precision or better → the same tensors, made alike."""


def moved(models: Sequence[State], align: Align) -> list[dict[str, Tensor]]:
    """The models, each tensor made alike among them."""
    _require_names(models)
    found: list[dict[str, Tensor]] = [{} for _ in models]
    for name in models[0]:
        first, *_ = tensors = _read(models, name)
        if first.is_floating_point() and not is_statistic(name):
            tensors = [t.to(first.dtype) for t in align(name, [precise(t) for t in tensors])]
        for state, tensor in zip(found, tensors, strict=True):
            state[name] = tensor.clone()
    return found


def mean(tensors: Sequence[Tensor], share: Sequence[float]) -> Tensor:
    """Σ_k p_k · tensor_k, the shares with a sum of one; equal tensors give themselves, to the bit.

    Running: m ← m + (p_k/Σ_{j≤k} p_j)·(tensor_k − m), which adds zero to what is equal. What
    counts nothing is not looked at.
    """
    (first, total), *rest = [(t, p) for t, p in zip(tensors, share, strict=True) if p]
    found = first.clone()
    for tensor, p in rest:
        total += p
        found.add_(tensor - found, alpha=p / total)
    return found
