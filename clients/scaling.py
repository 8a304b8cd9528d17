"""HeteroFL's scaler: hidden activations of a smaller model as loud as those of the largest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def scaled(model: nn.Module, rate: float) -> Iterator[None]:
    """Divide what hidden layers put out by ``rate``, in training only.

    Hidden are all linear and convolutional layers but the last one, the classifier. A norm
    behind a layer undoes it.

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

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    hooks = [layer.register_forward_hook(louder) for layer in layers[:-1]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
