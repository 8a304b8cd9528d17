"""Local objectives: what a client adds to its task loss, one algorithm a file.

Each is the client half of the strategy that sends the instructions for it, and does nothing
when a message has none. An objective knows no Flower: the content of a message reaches it as
a mapping of records, each a mapping of keys; arrays are tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedwsa.wire.content import Content

Weights = nn.Module | Mapping[str, Tensor]
"""The weights in training: a model, or tensors that have their ``.grad`` by name."""


@dataclass
class LocalRun:
    """What an objective may know of the training that it is a part of.

    Attributes
    ----------
    lr, momentum : float
        Of the client's SGD.
    state : dict
        What the client keeps between rounds: name → tensors. An objective reads the entry of
        its name, and replaces it in :meth:`Objective.end`.
    examples : int
        How many samples the client trains on.
    pulls : list of callable
        Each returns a gradient by name, at the weights as they are, that an objective adds and
        that is not of the client's loss: SCAFFOLD and FedDyn keep it out of their variates. An
        objective that adds one puts its function here when it is made.
    """

    lr: float
    momentum: float = 0.0
    state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    examples: int = 0
    pulls: list[Callable[[], dict[str, Tensor]]] = field(default_factory=list)

    def pull(self, weights: Mapping[str, Tensor]) -> list[Tensor] | None:
        """The sum of all pulls on the weights, zeros where there is none; None without any."""
        if not self.pulls:
            return None
        found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for each in self.pulls:
            for name, gradient in each().items():
                found[name] += gradient
        return list(found.values())


class Objective:
    """What a local objective offers to a training loop.

    One is made for each training, from the model that holds the received weights, the content
    of the message with the server's instructions, and the circumstances.
    """

    stackable: ClassVar[bool] = True
    """Whether tensors are enough, without a model to call: several clients may then be trained
    at once, each objective on its client's part of stacked weights."""

    has_loss: ClassVar[bool] = False
    """Whether :meth:`loss` is to be asked for each batch; such an objective is not stackable."""

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        raise NotImplementedError

    @property
    def active(self) -> bool:
        """Whether the message asks for it."""
        return True

    def loss(self, inputs: Tensor) -> Tensor:
        """What is added to the task loss of a batch, after the model's forward pass on it.

        For what has no closed form; ``inputs`` are those of the model.
        """
        raise NotImplementedError

    def add_gradient(self) -> None:
        """Add to ``.grad`` of the weights, between ``backward()`` and the optimiser's step."""

    def end(self) -> dict[str, float | list[float]]:
        """Return the metrics to report after the last step."""
        return {}

    def arrays(self) -> dict[str, Tensor]:
        """Tensors to send among the model's arrays, by name; after :meth:`end`."""
        return {}

    def records(self) -> dict[str, dict[str, Tensor]]:
        """Tensors to send beside the model, by the name of their record; after :meth:`end`."""
        return {}


def trainable(model: Weights) -> dict[str, Tensor]:
    """The tensors that are trained, by name."""
    if isinstance(model, nn.Module):
        return {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(model)


def gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the weights, zeros where the task loss gave none."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    return [weight.grad for weight in weights if weight.grad is not None]
