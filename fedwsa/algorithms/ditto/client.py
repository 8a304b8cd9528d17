"""Ditto, the client half of :class:`fedwsa.algorithms.ditto.server.Ditto`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedwsa.algorithms.beside.client import OwnModel
from fedwsa.algorithms.objective import GradientAt, LocalRun, Weights
from fedwsa.wire.content import Content


class OwnByDitto(OwnModel):
    """v ← v − η·(∇f(v) + λ·(v − w_g)), where w_g is the received model.

    A step for each of the shared model, which is trained plainly: on the same batch, at the same
    rate and momentum.

    Source: arXiv 2012.04221, algorithm 1.
    """

    settings: ClassVar[str] = "ditto"

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        super().__init__(model, content, local)
        self.pull = float(content[self.settings]["pull"])

    @classmethod
    @torch.no_grad()
    def descend(
        cls,
        objectives: Sequence[Self],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        gradient_at: GradientAt,
    ) -> None:
        """Move the own models."""
        own, pull = cls.stacked(objectives), objectives[0].pull
        found = gradient_at(own["model"])
        away = {name: w - own["received"][name] for name, w in own["model"].items()}
        cls.move(objectives, {name: g + pull * away[name] for name, g in found.items()})
