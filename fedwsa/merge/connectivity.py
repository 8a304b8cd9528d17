"""Mode connectivity: what lies on the line between two networks.

Two networks are linearly connected where no barrier rises between them, and then their average
is as good as they are. The barrier is the most by which the loss on the line rises above the
straight line between the losses of its ends.

References
----------
Weight Scope Alignment, arXiv 2408.12237; the barrier: Linear Mode Connectivity and the Lottery
Ticket Hypothesis, arXiv 1912.05671, and The Role of Permutation Invariance in Linear Mode
Connectivity of Neural Networks, arXiv 2110.06296, equation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from fedwsa.data.evaluation import Score
from fedwsa.merge.average import average
from fedwsa.merge.states import State

FEWEST = 11
"""Points on a line, both ends among them, below which a barrier may hide between two."""


def line(a: State, b: State, alpha: float) -> dict[str, Tensor]:
    """The state (1−α)·A + α·B on the line between two states.

    BatchNorm's statistics are mixed like weights; :func:`fedwsa.models.batch_norm.reestimate`
    measures those that belong to the point.

    Raises
    ------
    ValueError
        If α is not in [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1]; got {alpha}")
    if alpha in (0.0, 1.0):  # an end itself, to the bit
        return {name: tensor.clone() for name, tensor in (b if alpha else a).items()}
    return average([a, b], weights=[1.0 - alpha, alpha])


def positions(points: int) -> list[float]:
    """α from 0 to 1 in even steps.

    Raises
    ------
    ValueError
        If there are fewer than :data:`FEWEST`.
    """
    if points < FEWEST:
        raise ValueError(f"a line needs at least {FEWEST} points, both ends included; got {points}")
    return [i / (points - 1) for i in range(points)]


def rise(alphas: ArrayLike, values: ArrayLike) -> float:
    """max_α [ v(α) − ((1−α)·v(0) + α·v(1)) ], which is not negative: it is 0 at both ends.

    Parameters
    ----------
    alphas
        (P,), increasing from 0 to 1, P at least :data:`FEWEST`.
    values
        (P,), such as losses.

    Raises
    ------
    ValueError
        If there are too few, or they are no line from 0 to 1.
    """
    where, found = np.asarray(alphas, dtype=float), np.asarray(values, dtype=float)
    if where.shape != found.shape or where.ndim != 1 or len(where) < FEWEST:
        raise ValueError(
            f"a barrier needs at least {FEWEST} points and as many values; got {where.shape} "
            f"and {found.shape}"
        )
    if where[0] != 0.0 or where[-1] != 1.0 or (np.diff(where) <= 0).any():
        raise ValueError("the points of a line go from 0 to 1")
    return float((found - ((1.0 - where) * found[0] + where * found[-1])).max())


@dataclass(frozen=True)
class Path:
    """What was found on the line between two networks.

    Attributes
    ----------
    alphas : sequence of float
        Increasing, from 0 to 1.
    scores : sequence of Score
        At each of them.
    """

    alphas: Sequence[float]
    scores: Sequence[Score]

    @property
    def loss_barrier(self) -> float:
        """max_α [ L((1−α)A + αB) − ((1−α)·L(A) + α·L(B)) ]."""
        return rise(self.alphas, [score.loss for score in self.scores])

    @property
    def accuracy_barrier(self) -> float:
        """max_α [ ((1−α)·a(A) + α·a(B)) − a((1−α)A + αB) ], in parts of one."""
        return rise(self.alphas, [-score.accuracy for score in self.scores])


def walk(a: State, b: State, score: Callable[[State], Score], points: int = FEWEST) -> Path:
    """Score the states on the line between two networks.

    Parameters
    ----------
    a, b
        States of one architecture.
    score
        State → how well it does; where there is BatchNorm, with statistics of its own.
    points
        In even steps, both ends included.

    Raises
    ------
    ValueError
        If there are fewer than :data:`FEWEST`.
    """
    alphas = positions(points)
    return Path(alphas, [score(line(a, b, alpha)) for alpha in alphas])
