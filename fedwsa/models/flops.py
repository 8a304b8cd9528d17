"""Floating-point operations of networks, as torch counts them: products and convolutions."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedwsa.models import ImageShape


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
