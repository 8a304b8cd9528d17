"""Tensors ↔ Flower's records, and what is asked of a message."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedwsa.scope.moments import precise
from fedwsa.wire.arrays import record_of, values
from fedwsa.wire.content import find_record
from fedwsa.wire.names import ARRAYS, NUMBER_BYTES, PERSONAL, WIRE_BYTES


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """An ArrayRecord of the tensors, each in its own dtype; of bfloat16, in single precision.

    Tensors in main memory are not copied: leave them alone afterwards.
    """
    plain = {k: precise(t) if t.dtype == torch.bfloat16 else t for k, t in tensors.items()}
    return record_of({k: t.detach().cpu().numpy() for k, t in plain.items()})


def precise_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """As :func:`to_arrays`, half precision as single: as models travel and are kept."""
    return to_arrays({name: precise(tensor) for name, tensor in tensors.items()})


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """The tensors of an ArrayRecord to read, each in its own dtype; they may share its memory."""
    return {k: torch.from_numpy(values(array)) for k, array in arrays.items()}


def array_records(content: RecordDict) -> dict[str, ArrayRecord]:
    """The ArrayRecords of a content, to read.

    Flower's property makes a dictionary that writes back, twenty times as slowly: a third of what a
    reply costs the server.
    """
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}


def metric_records(content: RecordDict) -> dict[str, MetricRecord]:
    """Likewise the MetricRecords."""
    return {name: record for name, record in content.items() if isinstance(record, MetricRecord)}


def number(metrics: MetricRecord, key: str) -> float:
    """A metric that is known to be a plain number."""
    value = metrics[key]
    assert isinstance(value, int | float)
    return float(value)


def cast_like(arrays: ArrayRecord, reference: Mapping[str, Tensor]) -> ArrayRecord:
    """The arrays in the dtypes of ``reference`` (Flower's FedAdam answers in float64)."""
    return to_arrays(
        {
            k: t.to(reference[k].dtype) if k in reference else t
            for k, t in to_tensors(arrays).items()
        }
    )


def change_contents(
    instructions: Iterable[Message], change: Callable[[RecordDict], RecordDict]
) -> None:
    """Give messages a changed content; those that shared one share the changed one.

    So it is changed, stored and encoded once.
    """
    changed: dict[int, tuple[RecordDict, RecordDict]] = {}  # holds the plain one: ids are reused
    for message in instructions:
        plain = message.content
        if id(plain) not in changed:
            changed[id(plain)] = plain, change(plain)
        message.content = changed[id(plain)][1]


def payload(records: RecordDict) -> int:
    """Bytes of the arrays and metrics in a message.

    Not counted are its few settings, and :data:`PERSONAL`: a client that has its own part already
    needs none to begin with.
    """
    sent = [record for name, record in array_records(records).items() if name != PERSONAL]
    arrays = sum(map(array_bytes, sent))
    metrics = [value for record in metric_records(records).values() for value in record.values()]
    numbers = sum(len(value) if isinstance(value, list) else 1 for value in metrics)
    return arrays + NUMBER_BYTES * numbers


def sent_up(answer: RecordDict) -> int:
    """The same of an answer, whose model may have been compressed on its way."""
    told = find_record(answer, WIRE_BYTES)
    if told is None:
        return payload(answer)
    model = model_arrays(answer)
    dense = 0 if model is None else array_bytes(model)
    return payload(answer) - dense + round(float(told[WIRE_BYTES]))


def array_bytes(arrays: ArrayRecord) -> int:
    """Bytes of the values of arrays, by shape and dtype."""
    return sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in arrays.values())


def only_metrics(content: RecordDict) -> MetricRecord | None:
    """The one MetricRecord of a reply, under whatever name; None if there is not one."""
    records = list(metric_records(content).values())
    return records[0] if len(records) == 1 else None


def model_arrays(content: RecordDict) -> ArrayRecord | None:
    """The ArrayRecord with the model: the only one, or among several that named ``arrays``."""
    records = array_records(content)
    return next(iter(records.values())) if len(records) == 1 else records.get(ARRAYS)


def with_model_arrays(content: RecordDict, arrays: ArrayRecord) -> RecordDict:
    """The same content with other arrays in the place of the model's."""
    model = model_arrays(content)
    return RecordDict({k: arrays if record is model else record for k, record in content.items()})


def reply_metrics(replies: Iterable[Message]) -> list[MetricRecord]:
    """The MetricRecords of the replies that carry one."""
    found = [only_metrics(r.content) for r in replies if r.has_content()]
    return [m for m in found if m is not None]
