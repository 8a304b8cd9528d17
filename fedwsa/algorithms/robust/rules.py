"""Robust averages of K updates of D entries, as functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def geometric_median(updates: Tensor, weights: Tensor, smoothing: float, iterations: int) -> Tensor:
    """The point with the least weighted sum of distances to the updates, by smoothed Weiszfeld.

    From the weighted mean, v ← Σ β_k u_k / Σ β_k with β_k = α_k / max(ν, ‖v − u_k‖).

    Parameters
    ----------
    updates
        Shape ``(K, D)``.
    weights
        α, positive: ``(K,)``.
    smoothing
        ν, in the unit of the updates; where it is larger than all distances, the mean.

    Returns
    -------
    Tensor
        Shape ``(D,)``.

    Notes
    -----
    Source: arXiv 1912.13445, algorithm 2.
    """
    found = weights @ updates / weights.sum()
    for _ in range(iterations):
        beta = weights / (updates - found).norm(dim=1).clamp_min(smoothing)
        found = beta @ updates / beta.sum()
    return found


def trusted(updates: Tensor, root: Tensor) -> Tensor:
    """Σ t_k·(‖root‖/‖Δ_k‖)·Δ_k / Σ t_k, with t_k the cosine of Δ_k and root, none below zero.

    Nothing, where nobody is trusted.

    Parameters
    ----------
    updates
        Of the clients, ``(K, D)``.
    root
        The server's own, ``(D,)``.

    Notes
    -----
    Source: FLTrust, arXiv 2012.13995, equations 2 to 4.
    """
    lengths, length = updates.norm(dim=1).clamp(min=1e-30), root.norm()
    trust = (updates @ root / (lengths * length.clamp(min=1e-30))).clamp(min=0.0)
    if not trust.sum() > 0:
        return torch.zeros_like(root)
    found: Tensor = (trust * length / lengths) @ updates / trust.sum()
    return found


def clipped_around(
    updates: Tensor, weights: Tensor, centre: Tensor, radius: float, iterations: int = 1
) -> Tensor:
    """The mean of updates, none of which counts as further than ``radius`` from the centre.

    v ← v + Σ p_k (u_k − v)·min(1, τ/‖u_k − v‖), from the centre, with p the weights' shares.

    Returns
    -------
    Tensor
        Shape ``(D,)``.

    Notes
    -----
    Source: arXiv 2012.10333, algorithm 2; around zero, once, the norm clipping of arXiv 1911.07963.
    """
    shares = weights / weights.sum()
    for _ in range(iterations):
        apart = updates - centre
        factors = (radius / apart.norm(dim=1).clamp_min(1e-12)).clamp_max(1.0)
        centre = centre + (shares * factors) @ apart
    return centre


def conquered(
    updates: Tensor, malicious: int, entries: int, iterations: int, random: torch.Generator
) -> Tensor:
    """Which updates are left by divide and conquer: bool ``(K,)``.

    In each iteration, of some entries drawn at random, the ``malicious`` updates are marked that
    lie furthest along the direction in which the updates differ most; who is never marked, stays.

    Parameters
    ----------
    malicious
        How many are removed in an iteration, below K.

    Notes
    -----
    Source: Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021, algorithm 2.
    """
    left = torch.ones(len(updates), dtype=torch.bool)
    for _ in range(iterations):
        chosen = torch.randperm(updates.shape[1], generator=random)[:entries]
        centred = updates[:, chosen] - updates[:, chosen].mean(0)
        *_, along = torch.linalg.svd(centred.double(), full_matrices=False)
        score = (centred.double() @ along[0]).square()
        left[score.argsort()[len(updates) - malicious :]] = False
    return left
