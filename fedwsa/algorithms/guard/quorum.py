"""How many usable answers a round needs, and what becomes of it with fewer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedwsa.algorithms.guard.gathered import Gathered
from fedwsa.scope.weight_scope import choose

Below = Literal["stop", "skip"]


class TooFewResults(RuntimeError):
    """A round has fewer usable answers than it needs; the message is one line."""


@dataclass(frozen=True)
class Quorum:
    """What a cohort must bring.

    Attributes
    ----------
    results : float
        So many usable answers; below 1 a share of the cohort.
    repeats : int
        With fewer, those who gave no usable answer are asked again, so often at most.
    below : {"stop", "skip"}
        Then the run ends, or the model stays for this round.

    Raises
    ------
    ValueError
        Names the argument of :class:`~fedwsa.algorithms.guard.guard.Guard` that cannot be.
    """

    results: float = 1
    repeats: int = 0
    below: Below = "stop"

    def __post_init__(self) -> None:
        if not self.results > 0 or (self.results > 1 and self.results != int(self.results)):
            raise ValueError(
                f"min_results must be a number of clients, or a share below 1; got {self.results}"
            )
        if self.repeats < 0:
            raise ValueError(f"repeats must not be negative; got {self.repeats}")
        choose(Below, self.below, "below")

    def of(self, cohort: int) -> int:
        """How many usable answers a cohort of this size must give."""
        share = self.results < 1
        return math.ceil(self.results * cohort - 1e-9) if share else int(self.results)

    def is_met(self, gathered: Gathered, cohort: int) -> bool:
        """Whether a cohort gave as many usable answers as the quorum asks."""
        return len(gathered.accepted) >= self.of(cohort)

    def verdict(self, gathered: Gathered, cohort: int) -> Verdict:
        """What becomes of a round.

        Parameters
        ----------
        gathered
            The answers of those that were to answer.
        cohort
            How many were sampled: on simulated devices some may be away.
        """
        if self.is_met(gathered, cohort):
            return Verdict("aggregate")
        needed = self.of(cohort)
        if not gathered.asked and cohort and needed == 1:  # no failure: all of them are away
            return Verdict("skip", "no client of the cohort answers")
        return Verdict(self.below, _shortage(gathered, cohort, needed))


@dataclass(frozen=True)
class Verdict:
    """What becomes of a round.

    Attributes
    ----------
    then : {"aggregate", "skip", "stop"}
        The answers are aggregated; the model stays for this round; the run ends.
    problem : str
        Why, in a line; empty of a round that is aggregated.
    """

    then: Literal["aggregate", "skip", "stop"]
    problem: str = ""


def _shortage(gathered: Gathered, cohort: int, needed: int) -> str:
    """What a person is told of a cohort that gave too few usable answers."""
    count = len(gathered.accepted)
    if not count:
        return f"all {gathered.asked} clients failed in training: {gathered.reason()}"
    why = f"of the others most: {gathered.reason()}"
    if not gathered.lost():  # of simulated devices
        why = "the others do not answer"
    return f"{count} of {cohort} clients gave a usable answer, {needed} are needed; {why}"
