"""Attacks by what is sent: updates of any direction and length."""

from __future__ import annotations

from abc import abstractmethod
from statistics import NormalDist
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from fedwsa.algorithms.attacks.attack import Known, ModelAttack


class SignFlip(ModelAttack):
    """Send the honest update backwards.

    Parameters
    ----------
    scale
        Times its length.

    Notes
    -----
    Source: arXiv 1905.03853 (RSA), section 5, with the honest update for the gradient.
    """

    def __init__(self, scale: PositiveFloat) -> None:
        self.scale = scale

    def forge(self, known: Known) -> Tensor:
        """−scale·u."""
        return -self.scale * known.own


class Gaussian(ModelAttack):
    """Send noise.

    Parameters
    ----------
    scale
        Its standard deviation, times the root mean square of the honest update's entries.
    """

    def __init__(self, scale: PositiveFloat) -> None:
        self.scale = scale

    def forge(self, known: Known) -> Tensor:
        """Normal with mean 0, drawn for each attacker."""
        noise = torch.randn(known.own.shape, generator=known.random)
        return noise * self.scale * known.own.square().mean(1, keepdim=True).sqrt()


class Scaled(ModelAttack):
    """Send the honest update many times as long, so that it stands for the whole average.

    Parameters
    ----------
    scale
        Times its length. None: the clients of the round by the attackers in it, with which the
        average of equal clients becomes the attackers' model where the others hardly move.

    Notes
    -----
    Source: arXiv 1807.00459, equation 3.
    """

    def __init__(self, scale: PositiveFloat | None) -> None:
        self.scale = scale

    def forge(self, known: Known) -> Tensor:
        """scale·u."""
        scale = len(known.all) / len(known.own) if self.scale is None else self.scale
        return scale * known.own


class FreeRider(ModelAttack):
    """Send the model back that was received, with a little noise, and do no work.

    Parameters
    ----------
    noise
        Its standard deviation.

    Notes
    -----
    Source: arXiv 2006.11901, the plain and the disguised free-rider.
    """

    def __init__(self, noise: NonNegativeFloat) -> None:
        self.noise = noise

    def forge(self, known: Known) -> Tensor:
        """Noise alone."""
        return self.noise * torch.randn(known.own.shape, generator=known.random)


class ALIE(ModelAttack):
    """A little is enough: all send the same, as far from the mean as many honest clients are.

    The attackers know their own honest updates alone, and take mean μ and standard deviation σ of
    each entry from these: μ − z·σ. One alone has no deviation, and sends its honest update.

    Parameters
    ----------
    z
        None: as many honest clients lie further out as the attackers lack for a majority, if the
        entries are normal: with n clients and m attackers Φ(z) = (n − ⌊n/2 + 1⌋)/(n − m).

    Notes
    -----
    Source: arXiv 1902.06156, algorithm 3; Φ(z) is (n − m − s)/(n − m) there, s = ⌊n/2 + 1⌋ − m.
    """

    def __init__(self, z: NonNegativeFloat | None) -> None:
        self.z = z

    def idle(self, clients: int, attackers: int) -> str | None:
        """One alone, and as many as z = 0 is for, send the mean of what they would."""
        if attackers < 2 and self.z != 0:
            return "one alone knows no deviation, and sends what is honest"
        z = self._largest(clients, attackers) if self.z is None else self.z
        return (
            "z is 0, and all send their honest mean: give z, or a larger share" if z <= 0 else None
        )

    def forge(self, known: Known) -> Tensor:
        """μ − z·σ."""
        z = self._largest(len(known.all), len(known.own)) if self.z is None else self.z
        return known.own.mean(0) - z * known.own.std(0, correction=0)

    @staticmethod
    def _largest(clients: int, attackers: int) -> float:
        share = (clients - (clients // 2 + 1)) / max(1, clients - attackers)
        return NormalDist().inv_cdf(min(max(share, 1e-3), 1 - 1e-3))


class IPM(ModelAttack):
    """Inner product manipulation: the mean of the honest updates, backwards. Omniscient.

    Parameters
    ----------
    scale
        Times its length; small ones hide among the honest.

    Notes
    -----
    Source: arXiv 1903.03936, section 3.
    """

    def __init__(self, scale: PositiveFloat) -> None:
        self.scale = scale

    def forge(self, known: Known) -> Tensor:
        """−scale·mean."""
        honest = known.honest if len(known.honest) else known.own
        return -self.scale * honest.mean(0)


class _Farthest(ModelAttack):
    """From the mean as far as nobody can tell, in a direction of no good. Omniscient.

    All send μ + γ·p, with the mean μ of all honest updates and the largest γ that
    :meth:`hides`.

    Parameters
    ----------
    direction
        p: the mean's own, backwards (``unit``), its signs (``sign``), or the standard deviation of
        each entry (``std``).

    Notes
    -----
    Source: Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021, algorithm 1.
    """

    def __init__(self, direction: Literal["unit", "sign", "std"]) -> None:
        self.direction = direction

    def forge(self, known: Known) -> Tensor:
        """μ + γ·p, γ by bisection."""
        updates = known.all.double()
        mean, away = updates.mean(0), self._away(updates)
        low, high = 0.0, 1.0
        while self.hides(mean + high * away, updates) and high < 1e6:
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            hidden = self.hides(mean + middle * away, updates)
            low, high = (middle, high) if hidden else (low, middle)
        found: Tensor = torch.add(mean, away, alpha=low).to(known.own.dtype)
        return found

    def _away(self, updates: Tensor) -> Tensor:
        mean: Tensor = updates.mean(0)
        if self.direction == "unit":
            return torch.nn.functional.normalize(-mean, dim=0)
        if self.direction == "sign":
            return -mean.sign()
        return -updates.std(0, correction=0)

    @abstractmethod
    def hides(self, forged: Tensor, updates: Tensor) -> bool:
        """Whether an update is not too far from the honest ones."""


class MinMax(_Farthest):
    """As far as from no honest update further than two of these are from each other."""

    def hides(self, forged: Tensor, updates: Tensor) -> bool:
        """max ‖f − u_i‖ ≤ max ‖u_i − u_j‖."""
        return bool((forged - updates).norm(dim=1).max() <= torch.cdist(updates, updates).max())


class MinSum(_Farthest):
    """As far as the sum of squared distances allows, which is no larger than an honest one's."""

    def hides(self, forged: Tensor, updates: Tensor) -> bool:
        """Σ ‖f − u_i‖² ≤ max_j Σ ‖u_j − u_i‖²."""
        honest = torch.cdist(updates, updates).square().sum(1).max()
        return bool((forged - updates).square().sum() <= honest)
