"""What a client's answer must be like: the one place where replies are judged.

Asked by the guard (:mod:`fedwsa.algorithms.guard.guard`), and, where replies are averaged at the
workers, by :mod:`fedwsa.algorithms.partial_average`. Nothing here raises, whatever a client sends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedwsa.algorithms.guard.reported_scopes import bad_scope, measured_each
from fedwsa.models import exchange
from fedwsa.simulation.cohort import CohortReply
from fedwsa.wire import messages
from fedwsa.wire.arrays import check
from fedwsa.wire.content import find_record
from fedwsa.wire.names import (
    CLASS_ROWS,
    CLASSES,
    FISHER,
    FISHER_LAYERS,
    NUM_EXAMPLES,
)

LARGEST = 1e18
"""No weight and no metric is larger: its sum or its square would no longer be finite."""

MOST_EXAMPLES, _FEWEST = 1e9, 1e-9

_UNREADABLE = (ValueError, TypeError, KeyError, OverflowError, EOFError, OSError, SyntaxError)
"""What NumPy, torch and Flower raise at bytes that are no array."""


@dataclass(frozen=True)
class Rules:
    """What replies to a training must have.

    Attributes
    ----------
    weight : str
        The metric by which they are weighted: a positive number.
    numbers : tuple of str
        Metrics that must be there as plain numbers.
    most_examples : float
        More than that nobody has, by ``weight`` or ``num-examples``: a larger one would be the
        average alone.
    answers : tuple of (str, str)
        See :attr:`fedwsa.algorithms.traits.Traits.answers`.
    """

    weight: str = NUM_EXAMPLES
    numbers: tuple[str, ...] = ()
    most_examples: float = MOST_EXAMPLES
    answers: tuple[tuple[str, str], ...] = ()


def unusable_reply(content: RecordDict, sent: RecordDict, rules: Rules) -> str | None:
    """Why a reply to a training cannot be averaged, in a few words; None if it can.

    Parameters
    ----------
    content
        Of the reply.
    sent
        Of the message that it answers: its arrays must have the names, shapes and dtypes of
        those that were sent, its scopes must be those of its arrays.
    """
    if problem := _bad_metrics(content, rules):
        return problem
    metrics = messages.only_metrics(content)
    assert metrics is not None
    arrays, reference = messages.model_arrays(content), messages.model_arrays(sent)
    if arrays is None or reference is None:
        return "the reply must hold one ArrayRecord, or one named arrays"
    given, problem = _read(arrays)
    if problem is None:
        problem = unlike(given, messages.to_tensors(reference))
    if problem:
        return f"wrong arrays: {problem}"
    problem = _bad_extras(content, sent, arrays, rules) or _bad_fisher(content, sent)
    return problem or _bad_classes(metrics, sent, given) or bad_scope(metrics, sent, given)


def asks_beside(sent: RecordDict, rules: Rules) -> bool:
    """Whether a message asks for more arrays than the model's, or for classes."""
    return (
        any(asked in messages.array_records(sent) for asked, _ in rules.answers)
        or find_record(sent, FISHER_LAYERS) is not None
        or find_record(sent, CLASS_ROWS) is not None
    )


def unusable_stack(stack: CohortReply, sent: RecordDict, rules: Rules) -> list[str | None]:
    """Likewise of each of several replies to one message (which does not :func:`asks_beside`)."""
    said = [stack.said(k) for k in range(len(stack))]
    problems = [_bad_metrics(one, rules) for one in said]
    reference = messages.model_arrays(sent)
    if reference is None:
        return [problem or "the message must hold one ArrayRecord" for problem in problems]
    expected = messages.to_tensors(reference)
    first = {name: tensor[0] for name, tensor in stack.arrays.items()}
    same = exchange.mismatch(first, expected) or _other_dtype(first, expected)
    if same is not None:
        return [problem or f"wrong arrays: {same}" for problem in problems]
    for name, tensor in stack.arrays.items():
        found = _beyond_each(tensor)
        for k, problem in enumerate(problems):
            if problem is None and (beyond := found[stack.row(k)]) is not None:
                problems[k] = f"wrong arrays: {name} {beyond}"
    measured = measured_each(sent, stack.arrays)
    if measured is not None:
        for k, problem in enumerate(problems):
            if problem is None:
                metrics = messages.only_metrics(said[k])
                assert metrics is not None
                problems[k] = bad_scope(metrics, sent, first, measured[stack.row(k)])
    return problems


def unusable_scores(content: RecordDict, rules: Rules) -> str | None:
    """Likewise for a reply to an evaluation: it may have no samples, and NaN for scores."""
    metrics = messages.only_metrics(content)
    if metrics is None:
        return "the reply must hold exactly one MetricRecord"
    if problem := _missing(metrics, rules):
        return problem
    weight = metrics[rules.weight]
    assert isinstance(weight, int | float)  # not yet a float: it may be too large for one
    if not 0 <= weight <= rules.most_examples:
        return f"{rules.weight} must be a number from 0 to {rules.most_examples:g}"
    return None


def unlike(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Why tensors cannot stand for others: names, shapes, dtypes, NaN; None if they can."""
    if problem := exchange.mismatch(given, expected):
        return problem
    if problem := _other_dtype(given, expected):
        return problem
    return next((f"{k} {bad}" for k, t in given.items() if (bad := _beyond(t))), None)


def _other_dtype(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    for name, tensor in given.items():
        if tensor.dtype != expected[name].dtype:
            kinds = (str(t.dtype).removeprefix("torch.") for t in (tensor, expected[name]))
            return "{} is {}, not {}".format(name, *kinds)
    return None


def update_size(content: RecordDict, sent: RecordDict) -> float:
    """Root mean square of what a training changed, over all entries of a model that is usable."""
    arrays, reference = messages.model_arrays(content), messages.model_arrays(sent)
    assert arrays is not None
    assert reference is not None
    new, old = messages.to_tensors(arrays), messages.to_tensors(reference)
    square, count = 0.0, 0
    for name, tensor in new.items():
        # Squares of what may be as large as LARGEST are added up in double precision.
        square += float((tensor - old[name]).float().norm().double().square())
        count += tensor.numel()
    return math.sqrt(square / count) if count else 0.0


# --- metrics ---------------------------------------------------------------------------------


def _bad_metrics(content: RecordDict, rules: Rules) -> str | None:
    metrics = messages.only_metrics(content)
    if metrics is None:
        return "the reply must hold exactly one MetricRecord"
    if problem := _missing(metrics, rules):
        return problem
    for key, value in metrics.items():
        for one in value if isinstance(value, list) else [value]:
            if not math.isfinite(_float(one)):
                return f"metric {key} is NaN or infinite"
            if abs(_float(one)) > LARGEST and key != rules.weight:
                return f"metric {key} is absurdly large: {_float(one):g}"
    for key in dict.fromkeys((rules.weight, NUM_EXAMPLES)):
        if not isinstance(value := metrics.get(key, 1), int | float):
            return f"the metrics have no number {key}"
        if value <= 0:
            return f"{key} must be positive"
        if not _FEWEST <= value <= rules.most_examples:
            return f"{key} is absurd: {_float(value):g}, at most {rules.most_examples:g} counts"
    return None


def _missing(metrics: MetricRecord, rules: Rules) -> str | None:
    for key in (rules.weight, *rules.numbers):
        value = metrics.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return f"the metrics have no number {key}"
    return None


def _float(value: float) -> float:
    """As a float; a whole number that is too large for one is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


# --- arrays ----------------------------------------------------------------------------------


def _read(arrays: ArrayRecord) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a record that may be anything, or why it has none."""
    try:
        for array in arrays.values():
            check(array)
        return messages.to_tensors(arrays), None
    except _UNREADABLE as error:
        return {}, f"cannot be read: {type(error).__name__}"


def _beyond(tensor: Tensor) -> str | None:
    if not tensor.numel() or tensor.dtype == torch.bool:
        return None
    if tensor.is_complex():
        return "is complex"
    # Twenty times faster than isfinite().all(); both ends are NaN if anything is.
    return _beyond_ends(*(float(end) for end in tensor.aminmax()))


def _beyond_each(stack: Tensor) -> list[str | None]:
    """Likewise of each tensor of a stack ``(K, …)``."""
    if stack.dtype == torch.bool or not stack.numel() or stack.is_complex():
        return [_beyond(tensor) for tensor in stack]
    low, high = stack.reshape(len(stack), -1).aminmax(dim=1)
    return [_beyond_ends(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True)]


def _beyond_ends(low: float, high: float) -> str | None:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "is NaN or infinite"
    return "is absurdly large" if max(abs(low), abs(high)) > LARGEST else None


def _bad_extras(
    content: RecordDict, sent: RecordDict, model: ArrayRecord, rules: Rules
) -> str | None:
    """What is wrong with array records beside the model."""
    given_records, asked_records = map(messages.array_records, (content, sent))
    answered = {given: asked for asked, given in rules.answers if asked in asked_records}
    for name in answered:
        if name not in given_records:
            return f"the reply lacks {name}"
    for name, record in given_records.items():
        if record is model:
            continue
        given, problem = _read(record)
        expected = given
        if name in answered:
            whole = messages.to_tensors(asked_records[answered[name]])
            expected = {key: tensor for key, tensor in whole.items() if key in given}
        if problem := problem or unlike(given, expected):
            return f"{name}: {problem}"
    return None


def _bad_fisher(content: RecordDict, sent: RecordDict) -> str | None:
    """What is wrong with the Fisher information that a strategy asked for, if it did."""
    config = find_record(sent, FISHER_LAYERS)
    if config is None:
        return None
    record, reference = content.get(FISHER), messages.model_arrays(sent)
    if not isinstance(record, ArrayRecord):
        return f"the reply lacks {FISHER}"
    assert reference is not None
    shapes = messages.to_tensors(reference)
    given = messages.to_tensors(record)  # which _bad_extras has read
    if problem := unlike(given, {str(name): shapes[name] for name in config[FISHER_LAYERS]}):
        return f"{FISHER}: {problem}"
    negative = [name for name, tensor in given.items() if tensor.numel() and tensor.min() < 0]
    return f"{FISHER}: {negative[0]} has negative entries" if negative else None


def _bad_classes(
    metrics: MetricRecord, sent: RecordDict, given: Mapping[str, Tensor]
) -> str | None:
    """What is wrong with the classes that a client says it has; silence means all."""
    config = find_record(sent, CLASS_ROWS)
    if config is None or CLASSES not in metrics:
        return None
    said, names = metrics[CLASSES], config[CLASS_ROWS]
    rows = {len(given[str(name)]) for name in names}
    if not isinstance(said, list) or {len(said)} != rows:
        return f"{CLASSES} must be a list with a number for each class"
    if not set(said) <= {0, 1} or not any(said):
        return f"{CLASSES} must be ones and zeros, one for each class that is there"
    return None
