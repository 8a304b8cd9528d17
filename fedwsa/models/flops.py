"""Floating-point operations of networks, as torch counts them: products and convolutions."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedwsa.components import Component, ConfigError
from fedwsa.models import ImageShape, build_model


def forward_flops(model: nn.Module, image: ImageShape, batch: int) -> int:
    """Of an answer to a batch of images."""
    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(_images(model, image, batch))
    model.train(training)
    return int(counter.get_total_flops())


def step_flops(model: nn.Module, image: ImageShape, batch: int) -> int:
    """Of a training step on a batch: forward, and the gradients of all parameters."""
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(model(_images(model, image, batch)).sum())
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def _images(model: nn.Module, image: ImageShape, batch: int) -> torch.Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.zeros(batch, *image, device=device)


def training_flops(component: Component, image: ImageShape, classes: int) -> float:
    """Of training a network on one image: forward, and the gradients of all parameters.

    A multiply-add is two operations. Not counted is what torch does not: element-wise functions,
    normalisation, the optimiser; nor what local objectives add.
    """
    return _training(component.model_dump_json(by_alias=True), image, classes)


@lru_cache(maxsize=64)
def _training(component: str, image: ImageShape, classes: int) -> float:
    batch = 2  # a norm over the batch has none over a single image
    known = Component.model_validate_json(component)
    try:
        with torch.device("meta"):  # shapes alone: nothing is drawn, nothing computed
            model = build_model(known, image, classes, seed=0)
        return step_flops(model, image, batch) / batch
    except (ConfigError, RuntimeError, NotImplementedError):  # it looks at values
        return step_flops(build_model(known, image, classes, seed=0), image, batch) / batch
