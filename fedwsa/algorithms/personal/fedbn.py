"""FedBN: normalisation layers stay with each client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Unpack

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.personal.server import Personal
from fedwsa.algorithms.traits import Traits


class FedBN(Personal):
    """All but the normalisation layers is averaged; their weights and statistics are not.

    The paper has BatchNorm in mind; GroupNorm and LayerNorm are treated alike (ours).

    Source: arXiv 2102.07623.

    Parameters
    ----------
    norms
        Names of the arrays of the model's normalisation layers.
    sampling
        As for Flower's FedAvg.

    Raises
    ------
    ValueError
        If there are none.
    """

    traits: ClassVar[Traits] = replace(Personal.traits, wants=("norms",))

    def __init__(self, norms: Sequence[str], **sampling: Unpack[Sampling]) -> None:
        if not norms:
            raise ValueError(
                "the model has no normalisation layers to keep at the clients; for instance "
                "model=resnet20, or model=vgg11 model.norm=batch"
            )
        super().__init__(frozenset(norms).__contains__, **sampling)
