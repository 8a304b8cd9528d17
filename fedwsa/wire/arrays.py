"""Flower's Array without the encoding, for arrays that stay in memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

# Tensors made of a message's arrays are read, never written.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

_NUMPY = "numpy.ndarray"  # Flower's name of the encoding of numpy.save


class MemoryArray(Array):
    """An Array that keeps its values as they are, and is encoded only where bytes are asked for.

    Flower's own encodes at once, 6 MB for a model of 1.6 million parameters, and decodes at each
    look. To everybody else this one is an Array; pickled or sent over the wire it becomes one.

    Parameters
    ----------
    values
        Not copied: whoever passes them leaves them alone afterwards.
    """

    def __new__(cls, *_: NDArray[Any], **fields: Any) -> MemoryArray:
        """Of the fields of an Array, as :func:`dataclasses.replace` gives them, an Array."""
        return Array(**fields) if fields else object.__new__(cls)  # type: ignore[return-value]

    def __init__(self, values: NDArray[Any]) -> None:
        view = np.asarray(values, order="C").view()
        view.flags.writeable = False
        self.dtype, self.shape, self.stype = str(view.dtype), tuple(view.shape), _NUMPY
        self.values = view

    @property
    def data(self) -> bytes:
        """The values as Flower encodes them."""
        return Array.from_numpy_ndarray(self.values).data

    @data.setter
    def data(self, encoded: bytes) -> None:
        """Take other values, as from Flower's Array, whose bytes may be replaced."""
        self.values = np.load(BytesIO(encoded), allow_pickle=False)
        self.values.flags.writeable = False

    def numpy(self) -> NDArray[Any]:
        """A copy, as Flower's: strangers write into it."""
        return self.values.copy()

    def __eq__(self, other: object) -> bool:
        """As Flower's, by description and bytes: NaN is NaN; but in whatever order they lie."""
        if not isinstance(other, Array):
            return NotImplemented
        if (self.dtype, self.shape, self.stype) != (other.dtype, other.shape, other.stype):
            return False
        try:
            theirs = values(other)
        except (ValueError, EOFError):  # bytes that are no array
            return False
        ours = self.values
        return ours is theirs or (
            (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            and ours.tobytes() == theirs.tobytes()
        )

    __hash__ = None  # type: ignore[assignment]

    def _plain(self) -> Array:
        return Array.from_numpy_ndarray(self.values)

    def deflate(self) -> bytes:
        """Deflate as Flower's Array, whose name the receiver knows."""
        return self._plain().deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        return Array.from_numpy_ndarray, (self.values,)


def values(array: Array) -> NDArray[Any]:
    """The values of an Array to read, without a copy where that can be."""
    if isinstance(array, MemoryArray):
        return array.values
    if array.stype != _NUMPY or not np.prod(array.shape):
        return array.numpy()
    buffer = BytesIO(array.data)  # shares the bytes
    if np.lib.format.read_magic(buffer) != (1, 0):
        return array.numpy()
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    flat = np.frombuffer(array.data, dtype, offset=buffer.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def check(array: Array) -> None:
    """Refuse bytes that are no array, before anything is allocated for what they claim to be.

    Raises
    ------
    ValueError
        Says what is wrong.
    """
    if isinstance(array, MemoryArray):
        return
    if array.stype != _NUMPY or not isinstance(array.data, bytes):
        raise ValueError("not encoded as a NumPy array")
    buffer = BytesIO(array.data)
    if np.lib.format.read_magic(buffer) != (1, 0):
        raise ValueError("of another version of NumPy's format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(buffer)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(array.data) - buffer.tell():
        raise ValueError("not as long as its shape says")


def record_of(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """An ArrayRecord that keeps the arrays as they are."""
    record = ArrayRecord()  # filled by hand: its constructor would encode
    for name, array in arrays.items():
        record[name] = MemoryArray(array)
    return record
