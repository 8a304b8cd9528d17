"""Floating-point operations of networks, as torch counts them: products and convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedwsa.config.blame import blaming
from fedwsa.config.component import Component, ConfigError
from fedwsa.models import InputShape, blank_inputs, build_model
from fedwsa.models.attributes import copied
from fedwsa.remembered import in_run


def forward_flops(model: nn.Module, shape: InputShape, batch: int) -> int:
    """Of an answer to a batch of examples."""

    def answer(model: nn.Module, inputs: Tensor) -> None:
        with torch.no_grad():
            model.eval()(inputs)

    return _count(answer, model, shape, batch)


def step_flops(model: nn.Module, shape: InputShape, batch: int) -> int:
    """Of a training step on a batch: forward, and the gradients of all parameters."""

    def step(model: nn.Module, inputs: Tensor) -> None:
        torch.autograd.backward(model(inputs).sum())

    return _count(step, model, shape, batch)


def _count(
    work: Callable[[nn.Module, Tensor], None], model: nn.Module, shape: InputShape, batch: int
) -> int:
    """Operations of something done with a copy of a model, of which only the shapes are known.

    There recurrent layers are the products that they stand for; a processor runs them in one
    piece, which torch does not count. A model that looks at values has to have some.
    """
    try:
        return _counted(work, copied(model).to("meta"), blank_inputs(shape, batch, "meta"))
    except Exception:  # a stranger's own comes again below
        return _counted(work, copied(model).cpu(), blank_inputs(shape, batch, "cpu"))


def _counted(work: Callable[[nn.Module, Tensor], None], model: nn.Module, inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        work(model, inputs)
    return int(counter.get_total_flops())


@in_run(64)
def training_flops(component: Component, shape: InputShape, classes: int) -> float:
    """Of training a network on one example: forward, and the gradients of all parameters.

    A multiply-add is two operations. Not counted is what torch does not: element-wise functions,
    normalisation, the optimiser; nor what local objectives add.

    Raises
    ------
    ConfigError
        If the network cannot be built or trained.
    """
    batch = 2  # a norm over the batch has none over a single example
    try:
        with torch.device("meta"):  # no weights are drawn
            model = build_model(component, shape, classes, seed=0)
        return step_flops(model, shape, batch) / batch
    except Exception:  # its builder, too, may look at values
        model = build_model(component, shape, classes, seed=0)
    with blaming(ConfigError, "model: it cannot be trained: "):
        return step_flops(model, shape, batch) / batch
