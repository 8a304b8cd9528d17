"""Floating-point operations of networks, as torch counts them: products and convolutions."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedwsa.models import InputShape, blank_inputs


def forward_flops(model: nn.Module, shape: InputShape, batch: int) -> int:
    """Of an answer to a batch of examples."""
    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(_blank(model, shape, batch))
    model.train(training)
    return int(counter.get_total_flops())


def step_flops(model: nn.Module, shape: InputShape, batch: int) -> int:
    """Of a training step on a batch: forward, and the gradients of all parameters."""
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(model(_blank(model, shape, batch)).sum())
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def _blank(model: nn.Module, shape: InputShape, batch: int) -> torch.Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return blank_inputs(shape, batch, device)
