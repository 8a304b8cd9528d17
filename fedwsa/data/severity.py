"""How unlike each other the clients of a partition are: figures from label counts alone.

With ``counts`` of shape ``(clients, classes)``, p_k is the label distribution of client k and p
that of all clients together. Every client counts once in a mean, whatever its size.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import xlogy


def severity(counts: ArrayLike) -> dict[str, float]:
    """All figures of this module by name."""
    table = np.asarray(counts)
    return {
        "jensen_shannon": jensen_shannon(table),
        "earth_movers": earth_movers(table),
        "gini": gini(table.sum(1)),
    }


def jensen_shannon(counts: ArrayLike) -> float:
    """Mean Jensen–Shannon divergence of p_k to p, in bits: 0 to 1.

    JSD(p_k, p) = ½ KL(p_k ‖ m) + ½ KL(p ‖ m) with m = ½ (p_k + p), logarithms to base 2. The
    divergence, not its square root (the distance that ``scipy.spatial.distance`` returns).

    Source: Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37(1),
    1991.
    """
    own, everyone = map(torch.from_numpy, _distributions(counts))
    middle = (own + everyone) / 2
    each = xlogy(own, own) - xlogy(own, middle)
    all_ = xlogy(everyone, everyone) - xlogy(everyone, middle)
    return float((each + all_).sum(1).mean() / 2 / np.log(2))


def earth_movers(counts: ArrayLike) -> float:
    """Mean earth mover's distance of p_k to p: 0 to 1.

    Classes have no order, so it costs the same, 1, to move mass from any class to any other. The
    distance is then the total variation, ½ Σ_c |p_k(c) − p(c)|: the share of a client's samples
    that would have to change class.

    Source: arXiv 1806.00582, section 3.2, which leaves the ½ out: its figures are twice these.
    """
    own, everyone = _distributions(counts)
    return float(np.abs(own - everyone).sum(1).mean() / 2)


def gini(sizes: ArrayLike) -> float:
    """Gini coefficient of the clients' sizes: 0 if equal, (K−1)/K if one of K has everything.

    Σ_ij |n_i − n_j| / (2 K Σ_i n_i), from the sorted sizes as Σ_i (2i − K − 1) n_(i) / (K Σ n).

    Source: Gini, Variabilità e mutabilità, 1912.
    """
    ordered = np.sort(np.asarray(sizes, dtype=float))
    count = len(ordered)
    weights = 2 * np.arange(1, count + 1) - count - 1
    return float(weights @ ordered / (count * ordered.sum()))


def _distributions(counts: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Label distributions of the clients, and of all together."""
    table = np.asarray(counts, dtype=float)
    return table / table.sum(1, keepdims=True), table.sum(0) / table.sum()
