"""Records on their way through Ray's object store: as arrays, which it shares without a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedwsa.wire.arrays import MemoryArray, record_of, values

Record = ArrayRecord | MetricRecord | ConfigRecord
_A = TypeVar("_A")
_B = TypeVar("_B")


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
    """A record for the store, as it is now: what is done to it later does not show.

    One in an encoding that is not NumPy's keeps it.
    """
    if not isinstance(record, ArrayRecord):
        return copy.deepcopy(record)
    if any(array.stype != "numpy.ndarray" for array in record.values()):
        return own_record(record)
    return Packed({k: np.asarray(values(array), order="C") for k, array in record.items()})


def pack(content: Mapping[str, Record]) -> PackedContent:
    """A content for the store."""
    return each(content, pack_record)


def unpack(content: Mapping[str, PackedRecord]) -> RecordDict:
    """The content that was packed."""
    return RecordDict(each(content, lambda r: r.unpack() if isinstance(r, Packed) else r))


def each(records: Mapping[str, _A], change: Callable[[_A], _B]) -> dict[str, _B]:
    """All records changed; one that has two names goes on having them."""
    changed: dict[int, _B] = {}
    for record in records.values():
        if id(record) not in changed:
            changed[id(record)] = change(record)
    return {name: changed[id(record)] for name, record in records.items()}


def shell(message: Message) -> Message:
    """The message without its content: what is left is small, and the receiver's own."""
    bare = copy.copy(message)
    bare.__dict__["_metadata"] = copy.copy(message.metadata)
    if message.has_content():
        bare.content = RecordDict()
    return bare


def own_copy(content: RecordDict) -> RecordDict:
    """A content that may be changed without changing the one it was copied from.

    The values of arrays are shared: they cannot be written into.
    """
    return RecordDict(each(content, own_record))


def own_record(record: Record) -> Record:
    """Likewise a record: lists in it are copied, the values of arrays are not."""
    if not isinstance(record, ArrayRecord):
        return copy.deepcopy(record)
    own = record.copy()
    for name, array in record.items():
        twin = object.__new__(type(array))  # copy.copy() would encode it
        twin.__dict__.update(array.__dict__)
        own[name] = twin
    return own


def same(before: Mapping[str, Record], after: Mapping[str, Record]) -> bool:
    """Whether a state is as it was, without looking into arrays that were not replaced.

    To the type: 1 is not 1.0, nor is the order of names another's.
    """
    if list(before) != list(after):
        return False
    return all(_same_record(record, after[name]) for name, record in before.items())


def _same_record(before: Record, after: Record) -> bool:
    if type(before) is not type(after):
        return False
    if not (isinstance(before, ArrayRecord) and isinstance(after, ArrayRecord)):
        return repr(before) == repr(after)
    return list(before) == list(after) and all(map(_same_array, before.values(), after.values()))


def _same_array(before: Array, after: Array) -> bool:
    if not (isinstance(before, MemoryArray) and isinstance(after, MemoryArray)):
        return False  # to be on the safe side: bytes are long to compare
    described = (before.dtype, before.shape, before.stype)
    return before.values is after.values and described == (after.dtype, after.shape, after.stype)
