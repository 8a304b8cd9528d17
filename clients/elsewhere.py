"""The loss of a batch at other weights than those in training, for objectives that ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fedwsa.algorithms.objective import (
    GradientAt,
    Objective,
    gradients,
    overrides,
    trainable,
)
from fedwsa.models.attributes import copied
from fedwsa.models.dropout import Masks

LossOf = Callable[[nn.Module, Masks], Tensor]
"""The task loss of a step's batch by a network with masks of its own, entered."""


def descending(objectives: Sequence[Objective]) -> list[Objective]:
    """Those that look at other weights in each step."""
    return [one for one in objectives if overrides(type(one), "descend")]


class SingleElsewhere:
    """A second network of one client, for as long as it trains.

    Parameters
    ----------
    model
        In training.
    objectives
        Were made for it.
    """

    def __init__(self, model: nn.Module, objectives: Sequence[Objective]) -> None:
        self._model, self._asking = model, descending(objectives)
        if self._asking:
            # A network of its own: torch does not call a recurrent layer with weights of others.
            self._other = copied(model).train()
            self._masks = Masks(self._other)

    def descend(self, loss_of: LossOf) -> None:
        """Let objectives look at the batch of a step whose gradients are there."""
        if not self._asking:
            return
        named = trainable(self._model)
        added = dict(zip(named, gradients(list(named.values())), strict=True))
        weights, found = (
            {name: t.detach()[None] for name, t in of.items()} for of in (named, added)
        )
        at: GradientAt = partial(self._at, loss_of)
        for one in self._asking:
            type(one).descend([one], weights, found, at)

    def _at(self, loss_of: LossOf, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = trainable(self._other)
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(weight[0])
        with torch.enable_grad(), self._masks:
            loss = loss_of(self._other, self._masks)
        found = torch.autograd.grad(
            loss, [own[name] for name in weights], allow_unused=True, materialize_grads=True
        )
        return {name: g[None] for name, g in zip(weights, found, strict=True)}
