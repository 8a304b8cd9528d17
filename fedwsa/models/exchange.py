"""What of a network is sent, how it is put back, and whether tensors can stand for it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedwsa.models import state
from fedwsa.scope.moments import precise


def travelling_state(model: nn.Module) -> dict[str, Tensor]:
    """The part of a model's state that travels, see :mod:`fedwsa.models.state`.

    Half precision travels as single: sums of many clients need it, and NumPy has no bfloat16.
    """
    return {name: precise(t.detach()) for name, t in state.travelling(model).items()}


@torch.no_grad()
def load_travelling(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy into a model what :func:`travelling_state` gave; its tensors stay tied and typed.

    Raises
    ------
    ValueError
        If names or shapes are not the model's.
    """
    own = state.travelling(model)
    if problem := mismatch(tensors, own):
        raise ValueError(f"the arrays do not fit the model: {problem}")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def mismatch(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the names or shapes of ``given``, in a few words; None if nothing."""
    return mismatched(_shapes(given), _shapes(expected))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def mismatched(
    given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> str | None:
    """As :func:`mismatch`, of shapes by name."""
    if missing := sorted(expected.keys() - given.keys()):
        return f"missing {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
    if extra := sorted(given.keys() - expected.keys()):
        return f"unknown {extra[0]}" + (f" and {len(extra) - 1} more" if extra[1:] else "")
    for name, shape in expected.items():
        if given[name] != shape:
            return f"{name} is {given[name]}, not {shape}"
    return None


def unusable(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Why tensors cannot stand for a model: names, shapes, NaN; None if they can."""
    if problem := mismatch(given, expected):
        return problem
    bad = [name for name, tensor in given.items() if not _finite(tensor)]
    return f"{bad[0]} is NaN or infinite" if bad else None


def _finite(tensor: Tensor) -> bool:
    # Twenty times faster than isfinite().all(); both ends are NaN if anything is.
    return not tensor.numel() or all(math.isfinite(end) for end in tensor.aminmax())
