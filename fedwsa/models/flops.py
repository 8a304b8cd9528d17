"""Floating-point operations of networks, as torch counts them: products and convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.backends import mkldnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
    """Operations of something done with a copy of a model.

    Attention and recurrent layers are the products that they stand for, not one piece that a
    processor has for them and that no formula counts.
    """
    model, inputs = copied(model).cpu(), blank_inputs(shape, batch, "cpu")
    with _in_products(), sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
        work(model, inputs)
    return int(counter.total)


@contextmanager
def _in_products() -> Iterator[None]:
    enabled, *_ = mkldnn.set_flags(False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        mkldnn.set_flags(enabled)  # type: ignore[no-untyped-call]


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up by torch's formulas; its own FlopCounterMode imports its compiler, for a second."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which is what needs the compiler

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        formula = flop_registry.get(getattr(operation, "_overloadpacket", None))
        if formula is None and isinstance(operation, OpOverload):
            with self:  # what it is made of may have one
                result = operation.decompose(*args, **named)
            if result is not NotImplemented:
                return result
        result = operation(*args, **named)
        if formula is not None:
            self.total += formula(*args, **named, out_val=result)
        return result


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
    model = build_model(component, shape, classes, seed=0)
    with blaming(ConfigError, "model: it cannot be trained: "):
        return step_flops(model, shape, batch) / batch
