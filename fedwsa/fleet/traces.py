"""When devices are on, by simulated time: drawn as days, or from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedwsa import seeding


class Trace(Protocol):
    """When each device of a fleet is on."""

    def stays(self, clock: float) -> NDArray[np.float64]:
        """How many seconds each device stays on from a moment; 0 of one that is off."""

    def comes(self, clock: float) -> float:
        """The first moment from then on at which some device is on."""


@dataclass(frozen=True)
class Diurnal:
    """Each device is on for a part of each day, from a time of its own.

    Attributes
    ----------
    day : float
        Seconds.
    begins : array
        Of each device, in the day.
    lasts : float
        Seconds that it is on.
    """

    day: float
    begins: NDArray[np.float64]
    lasts: float

    @classmethod
    def drawn(cls, seed: int, clients: int, day: float, share: float) -> Diurnal:
        """A fleet whose devices are on for a share of the day, at times drawn uniformly."""
        keys = seeding.keys(seed, "diurnal", range(clients))
        return cls(day, day * (keys % 2**32) / 2**32, share * day)

    def stays(self, clock: float) -> NDArray[np.float64]:
        """How many seconds each device stays on from a moment; 0 of one that is off."""
        since = (clock - self.begins) % self.day
        return np.where(since < self.lasts, self.lasts - since, 0.0)

    def comes(self, clock: float) -> float:
        """The first moment from then on at which some device is on."""
        if self.stays(clock).any():
            return clock
        return clock + float(((self.begins - clock) % self.day).min())


@dataclass(frozen=True)
class Recorded:
    """Times from a file, repeated after the last of them.

    Attributes
    ----------
    device : array of int
        Of each time that a device is on.
    on, off : array
        When that begins and ends.
    of_client : array of int
        The device that each client has.
    """

    device: NDArray[np.int64]
    on: NDArray[np.float64]
    off: NDArray[np.float64]
    of_client: NDArray[np.int64]

    @classmethod
    def read(cls, file: Path, clients: int) -> Recorded:
        """The columns ``device,on,off`` of a CSV; client k has the k-th device, or k modulo them.

        Raises
        ------
        ValueError
            Names the row that cannot be; or there is no such file.
        """
        if not file.is_file():
            raise ValueError("there is no such file")
        table = pd.read_csv(file)
        if list(table.columns) != ["device", "on", "off"] or table.empty:
            raise ValueError("must have the columns device,on,off, and a row for each time on")
        for column in ("on", "off"):
            numbers = pd.to_numeric(table[column], errors="coerce")
            if (wrong := np.flatnonzero(~np.isfinite(numbers))).size:
                raise ValueError(f"row {wrong[0] + 2}: {column} is no number of seconds")
            table[column] = numbers.astype(float)
        wrong = np.flatnonzero((table["on"] < 0) | (table["off"] <= table["on"]))
        if wrong.size:
            raise ValueError(f"row {wrong[0] + 2}: off must come after on, from 0")
        device, names = pd.factorize(table["device"])
        found = (device.astype(np.int64), table["on"].to_numpy(), table["off"].to_numpy())
        return cls(*found, np.arange(clients) % len(names))

    @property
    def _length(self) -> float:
        return float(self.off.max())

    def stays(self, clock: float) -> NDArray[np.float64]:
        """How many seconds each device stays on from a moment; 0 of one that is off."""
        now = clock % self._length
        left = np.where((self.on <= now) & (now < self.off), self.off - now, 0.0)
        longest = np.zeros(int(self.device.max()) + 1)
        np.maximum.at(longest, self.device, left)
        return longest[self.of_client]

    def comes(self, clock: float) -> float:
        """The first moment from then on at which some device is on."""
        if self.stays(clock).any():
            return clock
        used = np.isin(self.device, self.of_client)
        return clock + float(((self.on[used] - clock) % self._length).min())


def check(value: dict[Any, Any]) -> None:
    """Check the form of what describes a trace.

    Raises
    ------
    ValueError
        Says what is allowed.
    """
    if value.keys() == {"file"} and isinstance(value["file"], str):
        return
    numbers = [v for v in value.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    drawn = value.keys() == {"day", "share"} and len(numbers) == 2 and min(numbers) > 0
    if drawn and value["share"] <= 1:
        return
    raise ValueError("must be {file: CSV}, or {day: SECONDS, share: PART} with a part up to 1")


def open_trace(value: dict[str, Any], seed: int, clients: int) -> Trace:
    """The trace that a configuration describes.

    Raises
    ------
    ValueError
        See :meth:`Recorded.read`.
    """
    if "file" in value:
        return Recorded.read(Path(value["file"]).expanduser(), clients)
    return Diurnal.drawn(seed, clients, float(value["day"]), float(value["share"]))
