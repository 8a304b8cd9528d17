"""What clients of several sizes do beside training: HeteroFL's scaler, the classes they have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedwsa.algorithms.objective import LocalRun, Objective, Weights
from fedwsa.models.exits import WithExits
from fedwsa.wire.content import Content, find_record
from fedwsa.wire.names import CLASS_ROWS, CLASSES, SIZE_RATE

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class Scaler(Objective):
    """Train with hidden activations as loud as those of the largest model (:func:`scaled`)."""

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        """All is done around the training."""

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server says by what to divide."""
        return find_record(content, SIZE_RATE) is not None

    @classmethod
    def during(cls, model: nn.Module, content: Content) -> AbstractContextManager[object]:
        """Divide what hidden layers put out."""
        named = find_record(content, SIZE_RATE)
        return scaled(model, 1.0 if named is None else float(named[SIZE_RATE]))


class HeldClasses(Objective):
    """Say which classes a client trains on: rows of the classifier are averaged over those."""

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if local is None or local.samples is None:
            raise ValueError("which classes a client has needs its samples")
        self._samples = local.samples

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server averages rows of the classifier."""
        return find_record(content, CLASS_ROWS) is not None

    def end(self) -> dict[str, float | list[float]]:
        """1 or 0 for each class."""
        there = torch.zeros(self._samples.classes)
        there[torch.unique(self._samples.labels).cpu()] = 1.0
        return {CLASSES: [float(held) for held in there]}


@contextmanager
def scaled(model: nn.Module, rate: float) -> Iterator[None]:
    """Divide what hidden layers put out by ``rate``, in training only.

    Hidden are all linear and convolutional layers but the last one, the classifier, on the way to
    an early exit too. A norm behind a layer undoes it.

    Parameters
    ----------
    model
        As it is again afterwards.
    rate
        r, the part of the largest model's units that this one has; 1 changes nothing.

    Source: HeteroFL, arXiv 2010.01264.
    """
    if rate == 1.0:
        yield
        return

    def louder(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output / rate if module.training else output

    hidden: dict[nn.Module, None] = {}
    for network in model.networks if isinstance(model, WithExits) else [model]:
        layers = [m for m in network.modules() if isinstance(m, _LAYERS)]
        hidden |= dict.fromkeys(layers[:-1])
    hooks = [layer.register_forward_hook(louder) for layer in hidden]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
