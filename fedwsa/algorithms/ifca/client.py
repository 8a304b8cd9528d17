"""IFCA, the client half of :class:`fedwsa.algorithms.ifca.server.IFCA`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedwsa.algorithms.objective import LocalRun, Objective, State, TrainedOn, Weights
from fedwsa.models import exchange
from fedwsa.wire.content import Content
from fedwsa.wire.names import ARRAYS

CLUSTER = "ifca-cluster"


class BestOfSeveral(Objective):
    """Take that of several models whose loss on the client's samples is the least, and train it.

    Source: An Efficient Framework for Clustered Federated Learning, arXiv 2006.04088, algorithm 1.
    """

    settings: ClassVar[str] = "ifca"
    stackable: ClassVar[bool] = False

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if local is None or local.samples is None or not isinstance(model, nn.Module):
            raise ValueError("IFCA needs a model and the client's samples")
        self._cluster = _take_best(model, content, local.samples)

    @classmethod
    def settle(cls, model: nn.Module, content: Content, state: State, samples: TrainedOn) -> None:
        """Take the best one for the evaluation."""
        _take_best(model, content, samples)

    def end(self) -> dict[str, float | list[float]]:
        """Which one it was, from 0."""
        return {CLUSTER: float(self._cluster)}


def models_in(sent: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The models of a message: the first, and those that go by ``NUMBER/NAME``."""
    count = 1 + max((int(name.partition("/")[0]) for name in others), default=0)
    return [
        dict(sent) if not k else {name: others[f"{k}/{name}"] for name in sent}
        for k in range(count)
    ]


def _take_best(model: nn.Module, content: Content, samples: TrainedOn) -> int:
    """Load the model with the least loss; which it is, the first of equals."""
    given = models_in(content[ARRAYS], content[BestOfSeveral.settings])
    losses = []
    for tensors in given:
        exchange.load_travelling(model, tensors)
        losses.append(_loss(model, samples))
    best = min(range(len(given)), key=losses.__getitem__)
    exchange.load_travelling(model, given[best])
    return best


@torch.no_grad()
def _loss(model: nn.Module, samples: TrainedOn) -> float:
    model.eval()
    each = (
        cross_entropy(model(inputs).float(), labels, reduction="sum")
        for inputs, labels in samples.batches()
    )
    return sum(float(loss) for loss in each)
