"""Floating-point operations of networks, as torch counts them: products and convolutions."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedwsa.models import InputShape, blank_inputs


def forward_flops(model: nn.Module, shape: InputShape, batch: int) -> int:
    """Of an answer to a batch of examples."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _without_values(model).eval()(blank_inputs(shape, batch, "meta"))
    return int(counter.get_total_flops())


def step_flops(model: nn.Module, shape: InputShape, batch: int) -> int:
    """Of a training step on a batch: forward, and the gradients of all parameters."""
    with FlopCounterMode(display=False) as counter:
        answer = _without_values(model)(blank_inputs(shape, batch, "meta"))
        torch.autograd.backward(answer.sum())
    return int(counter.get_total_flops())


def _without_values(model: nn.Module) -> nn.Module:
    """A copy of which only the shapes are known.

    There recurrent layers are the products that they stand for; a processor runs them in one
    piece, which torch does not count.
    """
    return deepcopy(model).to("meta")
