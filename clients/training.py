"""Local training of one model on one client's samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clients.elsewhere import SingleElsewhere
from clients.optimisers import Group, SingleOptimiser
from clients.passes import SinglePasses
from fedwsa.algorithms.objective import Objective
from fedwsa.data.examples import batch_sizes
from fedwsa.learngene import wave
from fedwsa.models.augment import ShadowWeights
from fedwsa.models.batch_norm import reestimate
from fedwsa.models.dropout import Masks
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.sections import Local
from fedwsa.scope.moments import precise

Prepare = Callable[[Tensor], Tensor]
"""Inputs as stored → the input of the model (normalised, perhaps augmented)."""

_AHEAD = 2048  # samples that are prepared at once: no work per step, little memory


@dataclass(frozen=True)
class Samples:
    """What a client trains on.

    Attributes
    ----------
    inputs, labels : Tensor
        See :class:`fedwsa.data.examples.Examples`.
    prepare : callable
        Makes the input of the model from inputs as stored.
    random : torch.Generator
        Draws the order of the samples.
    """

    inputs: Tensor
    labels: Tensor
    prepare: Prepare
    random: torch.Generator

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, sizes: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in a new order, prepared, in pieces of whole batches.

        Each piece is the inputs and labels of one or more batches of ``sizes``.
        """
        order = torch.randperm(len(self), generator=self.random).to(self.labels.device)
        for batches in _pieces(sizes):
            chosen, order = order[: sum(batches)], order[sum(batches) :]
            yield self.prepare(self.inputs[chosen]), self.labels[chosen]


def _pieces(sizes: Sequence[int]) -> Iterator[list[int]]:
    piece: list[int] = []
    for size in sizes:
        if piece and sum(piece) + size > _AHEAD:
            yield piece
            piece = []
        piece.append(size)
    if piece:
        yield piece


def absent_classes(seen: Tensor, classes: int) -> Tensor:
    """Which classes are not among those that were seen: bool ``(classes,)``."""
    absent = torch.ones(classes, dtype=torch.bool, device=seen.device)
    absent[seen] = False
    return absent


def without(absent: Tensor, logits: Tensor) -> Tensor:
    """Logits ``(B, C, …)`` that are zero for the classes that are absent, bool ``(C,)``."""
    return logits.masked_fill(absent.view(-1, *[1] * (logits.dim() - 2)), 0.0)


def _batches(samples: Samples, size: int) -> Iterator[Tensor]:
    """Inputs of an epoch in batches of about ``size``, none of which is a single sample."""
    for inputs, _ in samples.epoch(batch_sizes(len(samples), size)):
        yield from inputs.tensor_split(max(1, len(inputs) // size))


class _Stepped:
    """The weights of a model as the optimiser steps them: half precision in single.

    A step is often smaller than the spacing of half precision, and would be lost; the sum of many
    is not. The model's own weights are the rounded ones. WAVE's templates and scalers do not decay.
    """

    def __init__(self, model: nn.Module, trains: Callable[[str], bool] | None = None) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.is_floating_point()]
        self.own = [p for name, p in named if trains is None or trains(name)]
        self.weights = [
            p if precise(p).dtype == p.dtype else nn.Parameter(precise(p.detach()), p.requires_grad)
            for p in self.own
        ]
        pairs = list(zip(self.own, self.weights, strict=True))
        self._rounded = [(p, w) for p, w in pairs if p is not w]
        free = {id(p) for p in wave.made_of(model)}
        decaying: Group = {"params": [w for p, w in pairs if id(p) not in free]}
        fixed: Group = {"params": [w for p, w in pairs if id(p) in free], "weight_decay": 0.0}
        self.groups = [g for g in (decaying, fixed) if g["params"]]

    @torch.no_grad()
    def step(self, optimiser: SingleOptimiser) -> None:
        """A step by the gradients of the model."""
        for own, wide in self._rounded:
            wide.grad = None if own.grad is None else precise(own.grad)
        optimiser.step()
        for own, wide in self._rounded:
            own.copy_(wide)


def _steps(
    samples: Samples, conditions: Conditions, layout: torch.memory_format
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of each step of a training."""
    sizes, steps = batch_sizes(len(samples), conditions.batch_size), 0
    for _ in range(conditions.epochs):
        remaining = iter(sizes)
        for inputs, labels in samples.epoch(sizes):
            inputs = inputs.contiguous(memory_format=layout) if inputs.dim() == 4 else inputs
            start = 0
            while start < len(labels):
                if steps == conditions.steps:
                    return
                end = start + next(remaining)
                yield inputs[start:end], labels[start:end]
                start, steps = end, steps + 1


@dataclass(frozen=True, eq=False)
class _TaskLoss:
    """Mean cross entropy of the batch of a step, by any network of the model's form.

    Attributes
    ----------
    key, step
        What dropout follows from.
    seen
        The classes whose logits count; None: all.
    """

    inputs: Tensor
    labels: Tensor
    key: Tensor
    step: int
    seen: Tensor | None
    bf16: bool

    def __call__(self, network: nn.Module, masks: Masks) -> Tensor:
        return cross_entropy(self.logits(network, masks), self.labels)

    def logits(self, network: nn.Module, masks: Masks) -> Tensor:
        """What the network answers, as the loss sees it."""
        masks.begin(self.key, self.step)
        with torch.autocast(self.labels.device.type, torch.bfloat16, enabled=self.bf16):
            return self.masked(network(self.inputs))

    def masked(self, logits: Tensor) -> Tensor:
        """In single precision, zero for classes that do not count."""
        logits = precise(logits)
        if self.seen is None:
            return logits
        return without(absent_classes(self.seen, logits.shape[1]), logits)


def train(
    model: nn.Module,
    samples: Samples,
    local: Local,
    conditions: Conditions,
    objectives: Sequence[Objective],
    key: int = 0,
    trains: Callable[[str], bool] | None = None,
) -> float:
    """Train a model in place for ``conditions.epochs`` passes, or ``conditions.steps`` steps.

    Parameters
    ----------
    model
        With the received weights; ``objectives`` were made for it.
    key
        A number of this training, which dropout follows from.
    trains
        Which weights move, by name; None: all that are trained.

    Returns
    -------
    float
        Mean task loss over all samples of all steps, as seen while training.
    """
    model.train()
    device = samples.labels.device
    stepped = _Stepped(model, trains)
    optimiser = SingleOptimiser(stepped.groups, conditions, local.momentum, local.fused)
    layout = torch.channels_last if local.channels_last else torch.contiguous_format
    seen = torch.unique(samples.labels) if local.mask_absent else None
    masks, number = Masks(model), torch.tensor(key, device=device)
    plain = model.model if isinstance(model, ShadowWeights) else model
    elsewhere = SingleElsewhere(plain, objectives)
    total, trained = torch.zeros((), device=device), 0
    with SinglePasses(plain, objectives) as passes:
        for step, (inputs, labels) in enumerate(_steps(samples, conditions, layout)):
            task = _TaskLoss(inputs, labels, number, step, seen, local.bf16)
            model.zero_grad(set_to_none=True)
            with masks:
                logits = task.logits(model, masks)
                loss = cross_entropy(logits, labels)
                with torch.autocast(device.type, torch.bfloat16, enabled=local.bf16):
                    extra = passes.losses(inputs, labels, logits, task.masked)
            torch.autograd.backward([loss, *extra])
            elsewhere.descend(task)
            for objective in objectives:
                objective.add_gradient()
            if local.clip_norm is not None:
                nn.utils.clip_grad_norm_(stepped.own, local.clip_norm)
            stepped.step(optimiser)
            total += loss.detach() * len(labels)
            trained += len(labels)
    return float(total) / trained


def train_augmented(
    model: nn.Module,
    samples: Samples,
    local: Local,
    conditions: Conditions,
    objectives: Sequence[Objective],
    random: torch.Generator,
    key: int = 0,
    trains: Callable[[str], bool] | None = None,
) -> float:
    """As :func:`train`, under weight augmentation if ``local`` asks for it.

    The plain weights are trained; the scales of their shadows begin at 1 and are forgotten in the
    end: a client's update is then the sum of its steps, as objectives and strategies take it to be,
    and all clients begin with the same network. BatchNorm's statistics are measured anew for the
    plain weights.

    Parameters
    ----------
    random
        Draws the transforms.
    """
    if local.weight_augmentation == "off":
        return train(model, samples, local, conditions, objectives, key, trains)
    shadow = ShadowWeights(model, local.weight_augmentation, random)
    loss = train(shadow, samples, local, conditions, objectives, key)
    reestimate(model, _batches(samples, conditions.batch_size))
    return loss
