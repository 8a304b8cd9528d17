"""The learning rates of a run, round by round."""

from __future__ import annotations

import math
from functools import lru_cache

from fedwsa.config.blame import blaming
from fedwsa.config.component import Component, ConfigError, build, check_arguments, locate

_MOST_CHECKED = 100_000  # rounds that are looked at before the first


@lru_cache(maxsize=8)
def factors(schedule: Component, rounds: int, where: str) -> tuple[float, ...]:
    """Of each round's rate; the last stands for all that follow.

    Parameters
    ----------
    where
        The key that names the schedule.

    Raises
    ------
    ConfigError
        If one is no number above zero.
    """
    found, first = [], build(schedule, where, 0, rounds)
    function = locate(schedule.target, f"{where}._target_")
    arguments = check_arguments(function, schedule.arguments, where, 2, {})
    for t in range(min(rounds, _MOST_CHECKED)):
        with blaming(ConfigError, f"{where}: round {t + 1}: "):
            factor = function(t, rounds, **arguments) if t else first
        whole = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not whole or not 0 < factor < math.inf:
            raise ConfigError(f"{where}: round {t + 1}: the factor must be above 0, not {factor!r}")
        found.append(float(factor))
    return tuple(found)


def factor(schedule: Component, rounds: int, number: int, where: str) -> float:
    """Of the rate of a round, from 1."""
    of_each = factors(schedule, rounds, where)
    return of_each[min(number, len(of_each)) - 1]
