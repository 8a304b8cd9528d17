"""Whether the scopes that a client reports are those of its arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flwr.app import MetricRecord, RecordDict
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM
from torch import Tensor

from fedwsa.algorithms.wsa.instruction import REPORTED, ScopeInstruction
from fedwsa.scope.moments import moments, stacked_moments
from fedwsa.scope.weight_scope import Fusion, fan_in
from fedwsa.wire.content import find_record
from fedwsa.wire.names import SCOPE_KL, SCOPE_PRESENT

_TOLERANCE = 1e-3
"""By how much a scope may differ from the arrays', in standard deviations and as a share of the
second moment: sums in another order, or on another device, differ by a thousandth of that."""

Measured = tuple[Sequence[float], Sequence[float]]
"""Mean and variance of each layer of a scope that is among the arrays, as it is reported."""


def bad_scope(
    metrics: MetricRecord,
    sent: RecordDict,
    given: Mapping[str, Tensor],
    measured: Measured | None = None,
) -> str | None:
    """What is wrong with the scopes that FedWSA asked for, if it did.

    Parameters
    ----------
    measured
        Of the arrays, if somebody has measured them.
    """
    instruction = ScopeInstruction.from_content(sent)
    if instruction is None or not instruction.reported:
        return None
    names = instruction.target.names
    lists: dict[str, list[float]] = {}
    for key in instruction.answers:
        value = metrics.get(key)
        if not isinstance(value, list) or len(value) != len(names):
            return f"{key} must be a list of {len(names)} numbers, one per layer"
        lists[key] = [float(v) for v in value]
    held = lists.get(SCOPE_PRESENT, [1.0] * len(names))
    mean, spread, kl = (lists[key] for key in REPORTED)
    for i, name in enumerate(names):
        if held[i] not in (0.0, 1.0) or (name in given) > held[i]:
            return f"{SCOPE_PRESENT} is wrong for {name}"
        if not held[i] and (mean[i], spread[i], kl[i]) != (0.0, 0.0, 0.0):
            return f"a scope is reported of {name}, which is not there"
        second = _second_moment(mean[i], spread[i], instruction.fusion)
        if spread[i] < 0 or second < mean[i] ** 2 * (1 - _TOLERANCE):
            return f"the scope of {name} has a negative variance"
        if kl[i] < -_TOLERANCE:
            return f"{SCOPE_KL} of {name} is negative"
    if find_record(sent, KEY_CLIPPING_NORM):  # arrays are clipped after the scope was measured
        return None
    there = [i for i, name in enumerate(names) if name in given]  # others stay with the client
    if measured is None:
        weights = [given[names[i]] for i in there]
        if not weights or not all(w.numel() for w in weights):
            return None
        found = _measured(weights, instruction)
        measured = found[0].tolist(), found[1].tolist()
    return _other_scope(there, mean, spread, instruction, measured)


def _measured(
    weights: Sequence[Tensor], instruction: ScopeInstruction, stacked: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each layer as clients report them: ``(L,)``, or ``(L, K)`` of stacks."""
    mean, variance = (stacked_moments if stacked else moments)(weights)
    if instruction.normalise:
        one = (-1, 1) if stacked else (-1,)
        factor = fan_in([w[0] for w in weights] if stacked else weights).to(mean).view(one)
        mean, variance = mean * factor.sqrt(), variance * factor
    return mean, variance


def measured_each(sent: RecordDict, stacks: Mapping[str, Tensor]) -> list[Measured] | None:
    """Of each client of a stack; None where no scope is asked for."""
    instruction = ScopeInstruction.from_content(sent)
    if instruction is None or not instruction.reported:
        return None
    weights = [stacks[name] for name in instruction.target.names if name in stacks]
    if not weights or not all(w.numel() for w in weights):
        return [([], [])] * len(next(iter(stacks.values())))
    mean, variance = _measured(weights, instruction, stacked=True)
    return list(zip(mean.T.tolist(), variance.T.tolist(), strict=True))


def _second_moment(mean: float, spread: float, fusion: Fusion) -> float:
    """E[w²] = σ² + μ², from what a client reports (:func:`fedwsa.scope.weight_scope.spread`)."""
    if fusion == "moments":
        return spread
    return (spread if fusion == "mean_variance" else spread**2) + mean**2


def _other_scope(
    there: Sequence[int],
    mean: Sequence[float],
    spread: Sequence[float],
    instruction: ScopeInstruction,
    measured: Measured,
) -> str | None:
    """Whose scope is not that of the arrays that came with it."""
    names = instruction.target.names
    for i, centre, own in zip(there, *measured, strict=False):
        second = _second_moment(mean[i], spread[i], instruction.fusion)
        norm = own + centre**2
        near = abs(mean[i] - centre) <= _TOLERANCE * math.sqrt(norm) + 1e-9
        if not near or abs(second - norm) > _TOLERANCE * norm + 1e-12:
            return f"the scope of {names[i]} is not that of its array"
    return None
