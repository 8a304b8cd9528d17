"""APFL, the client half of :class:`fedwsa.algorithms.apfl.server.APFL`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedwsa.algorithms.beside.client import OwnModel, per_client
from fedwsa.algorithms.objective import GradientAt, LocalRun, State, Weights
from fedwsa.wire.content import Content
from fedwsa.wire.names import ARRAYS

_SHARE = "apfl share"


class Mixture(OwnModel):
    """The client answers by α·v + (1 − α)·w, of which v is its own and w the shared model.

    v ← v − η·α·∇f(α·v + (1 − α)·w), while w is trained plainly on the same batches. In the first
    step of a round α ← α − η·⟨v − w, ∇f(α·v + (1 − α)·w)⟩, kept in [0, 1], if it is to adapt.

    Source: Adaptive Personalized Federated Learning, arXiv 2003.13461, algorithm 1 and equation 11.
    """

    settings: ClassVar[str] = "apfl"

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        super().__init__(model, content, local)
        told = content[self.settings]
        begin = torch.tensor(float(told["share"]))
        share = self.local.state.get(_SHARE, {}).get("share", begin)
        self.own["share"] = {"share": share.to(next(iter(self.own["model"].values()))).clone()}
        self._adapts = bool(told["adapts"])

    @classmethod
    def evaluated_with(cls, content: Content, state: State) -> dict[str, Tensor]:
        """α·v + (1 − α)·w, with w as received."""
        own = state.get(cls.settings, {})
        if not own:
            return {}
        share = state[_SHARE]["share"]
        return {k: torch.lerp(content[ARRAYS][k].to(v), v, share.to(v)) for k, v in own.items()}

    @classmethod
    @torch.no_grad()
    def descend(
        cls,
        objectives: Sequence[Self],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        gradient_at: GradientAt,
    ) -> None:
        """Move the own models, and in the first step their shares."""
        own = cls.stacked(objectives)
        share = own["share"]["share"]
        shares = {k: share.to(v).view(-1, *[1] * (v.dim() - 1)) for k, v in own["model"].items()}
        mixed = {k: torch.lerp(weights[k], v, shares[k]) for k, v in own["model"].items()}
        found = gradient_at(mixed)
        before = {k: shares[k] * g for k, g in found.items()}
        if objectives[0]._adapts:
            slope = sum(
                ((own["model"][k] - weights[k]) * g).flatten(1).sum(1) for k, g in found.items()
            )
            rates = per_client([one.local.lr for one in objectives], share)
            share.sub_(rates * slope).clamp_(0.0, 1.0)
            for one in objectives:
                one._adapts = False
        cls.move(objectives, before)

    def end(self) -> dict[str, float | list[float]]:
        """Keep model and share, and tell the share."""
        super().end()
        share = self.own["share"]["share"].clone()
        self.local.state[_SHARE] = {"share": share}
        return {"apfl-share": float(share)}
