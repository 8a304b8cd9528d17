"""The learning rates of a run, round by round."""

from __future__ import annotations

import math

from fedwsa.config.blame import blaming
from fedwsa.config.component import Component, ConfigError, build, check_arguments, locate
from fedwsa.remembered import in_run


@in_run(8)
def factors(schedule: Component, rounds: int, where: str) -> tuple[float, ...]:
    """Of each round's rate.

    Parameters
    ----------
    where
        The key that names the schedule.

    Raises
    ------
    ConfigError
        If one is no number above zero.
    """
    build(schedule, where, 0, rounds)  # says what is wrong with the path and the keys
    function = locate(schedule.target, f"{where}._target_")
    arguments, found = check_arguments(function, schedule.arguments, where, 2, {}), []
    for t in range(rounds):
        with blaming(ConfigError, f"{where}: round {t + 1}: "):
            factor = function(t, rounds, **arguments)
        whole = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not whole or not 0 < factor < math.inf:
            raise ConfigError(f"{where}: round {t + 1}: the factor must be above 0, not {factor!r}")
        found.append(float(factor))
    return tuple(found)


def factor(schedule: Component, rounds: int, number: int, where: str) -> float:
    """Of the rate of a round, from 1; a later one than the last has that one's."""
    of_each = factors(schedule, rounds, where)
    return of_each[min(number, len(of_each)) - 1]
