"""What an answer counts that began with an older model than that of the server."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, assert_never

from torch import Tensor

Discount = Literal["constant", "polynomial", "hinge"]


def weight(discount: Discount, staleness: int, exponent: float, bound: float) -> float:
    """s(τ) of an answer: 1 for one that is not late, at most 1 for others.

    Parameters
    ----------
    discount : {"constant", "polynomial", "hinge"}
        1; (1 + τ)^−a; 1 up to τ = b, then 1/(1 + a·(τ − b)).
    staleness
        τ: steps of the server since the answer's model was sent.
    exponent, bound
        a and b.

    Source: Asynchronous Federated Optimization, arXiv 1903.03934, section 5.2.
    """
    match discount:
        case "constant":
            return 1.0
        case "polynomial":
            return float((1 + staleness) ** -exponent)
        case "hinge":
            late = staleness - bound
            return 1.0 if late <= 0 else 1 / (1 + exponent * late)
        case _:
            assert_never(discount)


def moved(
    answer: Mapping[str, Tensor],
    begun: Mapping[str, Tensor],
    now: Mapping[str, Tensor],
    part: float,
    measured: Collection[str] = (),
) -> dict[str, Tensor]:
    """An answer as if it had begun with another model: now + part·(answer − begun).

    Their average is then a step of the server's that is the average of these ways.

    Parameters
    ----------
    answer, begun
        A trained model, and that from which the way is counted: what the client began with
        (FedBuff, arXiv 2106.06639, algorithm 1), or the server's (FedAsync, arXiv 1903.03934,
        algorithm 1).
    now
        The server's model.
    measured
        Names of statistics, which have no way that they could go a part of: they are the answer's.
    """
    return {
        name: own if name in measured else now[name] + part * (own - begun[name])
        for name, own in answer.items()
    }
