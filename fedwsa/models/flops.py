"""Floating-point operations of networks, as torch counts them: products and convolutions."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedwsa.components import Component, ConfigError
from fedwsa.models import InputShape, blank_inputs, build_model


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


def training_flops(component: Component, shape: InputShape, classes: int) -> float:
    """Of training a network on one example: forward, and the gradients of all parameters.

    A multiply-add is two operations. Not counted is what torch does not: element-wise functions,
    normalisation, the optimiser; nor what local objectives add.
    """
    return _training(component.model_dump_json(by_alias=True), shape, classes)


@lru_cache(maxsize=64)
def _training(component: str, shape: InputShape, classes: int) -> float:
    batch = 2  # a norm over the batch has none over a single example
    known = Component.model_validate_json(component)
    try:
        with torch.device("meta"):  # shapes alone: nothing is drawn, nothing computed
            model = build_model(known, shape, classes, seed=0)
        return step_flops(model, shape, batch) / batch
    except (ConfigError, RuntimeError, NotImplementedError):  # it looks at values
        return step_flops(build_model(known, shape, classes, seed=0), shape, batch) / batch
