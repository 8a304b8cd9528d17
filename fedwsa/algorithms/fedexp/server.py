"""FedExP: a server's step that grows with how much clients disagree."""

from __future__ import annotations

from typing import Unpack

from pydantic import NonNegativeFloat
from torch import Tensor

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.robust.server import RobustAverage
from fedwsa.algorithms.sizes.server import Weighted


class FedExP(RobustAverage):
    """Federated averaging that goes on along the mean update where updates cancel each other.

    η = max(1, Σ p_k·‖Δ_k‖² / (2·(‖Δ̄‖² + ε))) times the mean update Δ̄ = Σ p_k·Δ_k. The result of a
    run is its last model; the paper averages the last two, against the swings that come near the
    end.

    Source: FedExP: Speeding Up Federated Averaging via Extrapolation, arXiv 2301.09604, equation 7.

    Parameters
    ----------
    epsilon
        ε, in squares of weights.
    weighted, sampling
        See :class:`fedwsa.algorithms.robust.server.RobustAverage`.
    """

    traits = RobustAverage.traits

    def __init__(
        self, *, epsilon: NonNegativeFloat, weighted: Weighted, **sampling: Unpack[Sampling]
    ) -> None:
        super().__init__(weighted=weighted, **sampling)
        if epsilon < 0:
            raise ValueError("epsilon must be zero or above")
        self.epsilon = epsilon

    def bears(self, cohort: int) -> int:
        """Any number, for what it is worth: it is no defence."""
        return cohort

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        """The mean update, times η."""
        return extrapolated(updates, weights, self.epsilon)


def extrapolated(updates: Tensor, weights: Tensor, epsilon: float) -> Tensor:
    """The update ``(D,)`` of FedExP of those of the clients, ``(K, D)`` with weights ``(K,)``."""
    shares = (weights / weights.sum()).to(updates)
    mean = shares @ updates
    spread = shares @ updates.square().sum(1)
    rate = spread / (2 * (mean.square().sum() + epsilon)).clamp(min=1e-30)
    return mean * rate.clamp(min=1.0)
