"""Whether clients of a model can be trained at once: tried, since code does not say it."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clients.borrowed import borrowed
from clients.optimisers import StackedOptimiser
from clients.stack import Stack, StepBatch
from fedwsa import seeding
from fedwsa.config.blame import told
from fedwsa.models.dropout import Masks
from fedwsa.models.inputs import InputShape, drawn_inputs
from fedwsa.schema.conditions import Conditions

_FEWEST, _MOST = 4, 64  # of a batch; larger ones cost time, and show no more
_TRIES = 3
_RATE = 0.01
_ALIKE = 1e-2  # of a weight's change; what looks across a batch differs by far more


@dataclass(frozen=True)
class Stacking:
    """How clients of a model can be trained at once.

    Attributes
    ----------
    reason : str or None
        Why they cannot be; None: they can.
    padded : bool
        Whether batches may be padded: nothing in the model looks across a batch.
    keeping : tuple of str
        Buffers that change in training, of which each client has its own.
    """

    reason: str | None = None
    padded: bool = True
    keeping: tuple[str, ...] = ()


def stacking(model: nn.Module, shape: InputShape, classes: int, batch: int = 4) -> Stacking:
    """Train two unlike clients for two steps, at once and each alone, and compare.

    The weights are moved at random before: one that begins at zero would hide what lies behind.
    The model is as it was afterwards.

    Parameters
    ----------
    shape
        Of an example.
    batch
        Size of the run's batches; the clients' are of this size but for the last of the second,
        which is half as large.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            return Stacking(f"torch has no stacked {type(module).__name__}")
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.element_size() < 4:
            return Stacking(f"{name} is {str(weight.dtype).removeprefix('torch.')}")
    device = next(model.parameters()).device
    draw = seeding.generator(0, "stacking")
    full = min(max(batch, _FEWEST), _MOST)
    examples = [
        _batches(sizes, shape, classes, draw, device) for sizes in ((full, full), (full, full // 2))
    ]
    with seeding.seeded(0, "stacking"), _kept(model), borrowed(model):
        _move(model, draw)
        try:
            alone = [_alone(model, own, key) for key, own in enumerate(examples)]
        except _Unstackable as error:
            return Stacking(str(error))
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            return Stacking(f"it cannot be trained on examples drawn at random: {told(error)}")
        keeping = _keeping(model, alone)
        for padded in (True, False):
            try:
                stacked = _stacked(model, examples, padded, keeping)
            except (Exception, SystemExit) as error:
                return Stacking(f"torch cannot stack it: {told(error)}")
            other = _differing(alone, stacked)
            if not other:
                return Stacking(padded=padded, keeping=keeping)
    return Stacking(f"stacked, {other} is trained in another way than alone")


class _Unstackable(Exception):
    pass


Batches = Sequence[tuple[Tensor, Tensor]]
"""Inputs and labels of each step of a client."""


def _batches(
    sizes: Sequence[int],
    shape: InputShape,
    classes: int,
    draw: torch.Generator,
    device: torch.device,
) -> Batches:
    drawn = (drawn_inputs(shape, count, classes, draw) for count in sizes)
    return [(inputs.to(device), labels.to(device)) for inputs, labels in drawn]


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """A model in training, and all its tensors as they were afterwards."""
    before = {name: t.detach().clone() for name, t in _tensors(model)}
    mode = model.training
    try:
        yield
    finally:
        model.train(mode)
        _restore(model, before)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@torch.no_grad()
def _restore(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, tensor in _tensors(model):
        if tensor.shape == before[name].shape:
            tensor.copy_(before[name])
        else:
            module, _, leaf = name.rpartition(".")
            model.get_submodule(module).register_buffer(leaf, before[name])


@torch.no_grad()
def _move(model: nn.Module, draw: torch.Generator) -> None:
    for weight in model.parameters():
        if weight.requires_grad:
            reads = weight[0].numel() if weight.dim() > 1 else 9
            noise = torch.randn(weight.shape, generator=draw) * 0.3 / max(1, reads) ** 0.5
            weight.add_(noise.to(weight))


def _alone(model: nn.Module, batches: Batches, key: int) -> dict[str, Tensor]:
    """How far plain SGD takes each weight, and training each buffer.

    Raises
    ------
    _Unstackable
        If the model draws random numbers, or a buffer changes its shape.
    """
    for _ in range(_TRIES):  # other threads of the process draw from the same generators
        before = _generators(batches[0][0].device)
        moved = _moved(model, batches, key)
        if _generators(batches[0][0].device) == before:
            return moved
    raise _Unstackable("what it draws would be another")


def _moved(model: nn.Module, batches: Batches, key: int) -> dict[str, Tensor]:
    """The same, whatever it draws."""
    start = {name: t.detach().clone() for name, t in _tensors(model)}
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    number = torch.tensor(key, device=batches[0][0].device)
    model.train()
    with Masks(model) as masks:
        for step, (x, y) in enumerate(batches):
            masks.begin(number, step)
            loss = cross_entropy(model(x), y)
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            with torch.no_grad():
                for weight, gradient in zip(weights.values(), found, strict=True):
                    if gradient is not None:
                        weight.sub_(gradient, alpha=_RATE)
    now = dict(_tensors(model))
    for name, before in start.items():
        if name not in now or now[name].shape != before.shape:
            raise _Unstackable(f"{name} does not keep its shape")
    moved = {name: _way(before, now[name].detach()) for name, before in start.items()}
    _restore(model, start)
    return moved


def _way(before: Tensor, now: Tensor) -> Tensor:
    return before ^ now if now.dtype == torch.bool else now - before


def _keeping(model: nn.Module, alone: Sequence[dict[str, Tensor]]) -> tuple[str, ...]:
    """The buffers that training has changed."""
    buffers = [name for name, _ in model.named_buffers()]
    return tuple(name for name in buffers if any(bool(moved[name].any()) for moved in alone))


def _generators(device: torch.device) -> tuple[object, ...]:
    """The states of all that a forward pass may draw from."""
    places = [torch.get_rng_state()]
    if device.type == "cuda":
        places.append(torch.cuda.get_rng_state(device))
    legacy: Any = np.random.get_state()  # noqa: NPY002, what a stranger may use
    numpy = (legacy[1].tobytes(), legacy[2])
    return (random.getstate(), numpy, *[state.numpy().tobytes() for state in places])


def _stacked(
    model: nn.Module, examples: Sequence[Batches], padded: bool, keeping: Collection[str]
) -> list[dict[str, Tensor]]:
    """The same of several clients at once."""
    count = len(examples)
    stack = Stack(model, count, padded, keeping)
    held = stack.weights | stack.buffers
    start = {name: t.clone() for name, t in held.items()}
    keys = torch.arange(count, device=examples[0][0][0].device)
    plain = Conditions(_RATE, 0.0, 1, 1)
    weights, gradients = (list(of.values()) for of in (stack.weights, stack.gradients))
    optimiser = StackedOptimiser(weights, gradients, [plain] * count, momentum=0.0)
    for number, step in enumerate(zip(*examples, strict=True)):  # a batch of each
        sizes = [len(y) for _, y in step]
        x, y = (torch.stack([_padded(batch[i], max(sizes)) for batch in step]) for i in (0, 1))
        stack.backward(StepBatch(x, y, sizes, number, keys))
        optimiser.step(count)
    return [{name: _way(start[name][k], t[k]) for name, t in held.items()} for k in range(count)]


def _padded(batch: Tensor, length: int) -> Tensor:
    rest = batch.new_zeros(length - len(batch), *batch.shape[1:])
    return torch.cat([batch, rest])


def _differing(
    alone: Sequence[dict[str, Tensor]], stacked: Sequence[dict[str, Tensor]]
) -> str | None:
    """The first weight that is not moved alike, but for rounding."""
    for one, other in zip(alone, stacked, strict=True):
        largest = max(float(one[name].float().norm()) for name in other)
        for name, t in other.items():
            moved = one[name].float()
            apart = float((moved - t.float()).norm())
            if not apart <= _ALIKE * float(moved.norm()) + 1e-3 * largest + 1e-6:
                return name
    return None
