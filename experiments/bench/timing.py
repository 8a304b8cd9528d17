"""Several sides of a comparison, timed in turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from rich.progress import track


def in_turn(
    sides: Mapping[str, Callable[[], object]], turns: int, warm_up: int = 3
) -> dict[str, float]:
    """Median seconds of each side.

    Parameters
    ----------
    sides
        What is timed.
    turns
        How often each runs.
    warm_up
        Turns before, which are not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for turn in track(range(-warm_up, turns), "Timing"):
        for name in order:
            start = time.perf_counter()
            sides[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
        order = [*order[1:], order[0]]  # none always runs behind the same other
    return {name: statistics.median(taken) for name, taken in times.items()}
