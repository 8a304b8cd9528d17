"""Records on their way through Ray's object store: as arrays, which it shares without a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedwsa.arrays import MemoryArray, record_of, values

Record = ArrayRecord | MetricRecord | ConfigRecord


@dataclass(frozen=True)
class Packed:
    """An ArrayRecord as plain arrays, which are pickled out of band."""

    arrays: dict[str, NDArray[Any]]

    def unpack(self) -> ArrayRecord:
        """The record; its arrays are not copied."""
        return record_of(self.arrays)


PackedRecord = Packed | Record
PackedContent = dict[str, PackedRecord]


def pack_record(record: Record) -> PackedRecord:
    """A record for the store; one in an encoding that is not NumPy's stays as it is."""
    if not isinstance(record, ArrayRecord):
        return record
    if any(array.stype != "numpy.ndarray" for array in record.values()):
        return record
    return Packed({k: np.asarray(values(array), order="C") for k, array in record.items()})


def pack(content: Mapping[str, Record]) -> PackedContent:
    """A content for the store."""
    return {name: pack_record(record) for name, record in content.items()}


def unpack(content: Mapping[str, PackedRecord]) -> RecordDict:
    """The content that was packed."""
    return RecordDict({k: r.unpack() if isinstance(r, Packed) else r for k, r in content.items()})


def shell(message: Message) -> Message:
    """The message without its content: what is left is small."""
    bare = copy.copy(message)
    if message.has_content():
        bare.content = RecordDict()
    return bare


def own_copy(content: RecordDict) -> RecordDict:
    """A content whose records may be changed without changing those it was copied from.

    Arrays are shared: they cannot be written into.
    """
    return RecordDict({name: record.copy() for name, record in content.items()})


def same(before: Mapping[str, Record], after: Mapping[str, Record]) -> bool:
    """Whether a state is as it was, without looking into arrays that were not replaced."""
    if before.keys() != after.keys():
        return False
    return all(_same_record(record, after[name]) for name, record in before.items())


def _same_record(before: Record, after: Record) -> bool:
    if isinstance(before, ArrayRecord) and isinstance(after, ArrayRecord):
        return before.keys() == after.keys() and all(
            after[k] is array and isinstance(array, MemoryArray) for k, array in before.items()
        )
    return type(before) is type(after) and bool(before == after)
