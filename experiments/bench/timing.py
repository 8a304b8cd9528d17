"""Several sides of a comparison, timed in turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping

from rich.progress import track


def in_turn(
    sides: Mapping[str, Callable[[int], list[float]]],
    turns: int,
    told: Callable[[str, float], object] = lambda name, seconds: None,
) -> dict[str, float]:
    """Median seconds of each side, of those that time themselves.

    Parameters
    ----------
    sides
        Each takes the number of the turn, and returns seconds.
    turns
        How often each runs.
    told
        Told of each side's median after its turn.
    """
    return _medians(sides, range(turns), told)


def calls_in_turn(
    sides: Mapping[str, Callable[[], object]], turns: int, warm_up: int = 3
) -> dict[str, float]:
    """Median seconds of a call of each side.

    Parameters
    ----------
    sides
        What is timed.
    turns
        How often each runs.
    warm_up
        Turns before, which are not timed.
    """

    def timed(call: Callable[[], object]) -> Callable[[int], list[float]]:
        def run(turn: int) -> list[float]:
            start = time.perf_counter()
            call()
            return [time.perf_counter() - start] if turn >= 0 else []

        return run

    numbers = track(range(-warm_up, turns), "Timing")
    return _medians({name: timed(call) for name, call in sides.items()}, numbers)


def _medians(
    sides: Mapping[str, Callable[[int], list[float]]],
    numbers: Iterable[int],
    told: Callable[[str, float], object] = lambda name, seconds: None,
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for number in numbers:
        for name in order:
            seconds[name] += sides[name](number)
            if seconds[name]:
                told(name, statistics.median(seconds[name]))
        order = [*order[1:], order[0]]  # none always runs behind the same other
    return {name: statistics.median(taken) for name, taken in seconds.items()}
