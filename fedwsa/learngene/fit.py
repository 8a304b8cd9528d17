"""Training where all data are in one place: teachers, auxiliary models, scalers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from fedwsa import seeding
from fedwsa.data.examples import Examples, LabelledData
from fedwsa.learngene.resume import Resume, asked_to_stop

Report = Callable[[int, float], None]
"""Called after each step with its number, from 1, and its loss."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(inputs, logits, labels) → the loss."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    steps : int
        Of AdamW.
    batch_size : int
    lr : float
        The highest learning rate.
    weight_decay : float
        Of tensors with two or more dimensions that are not exempt.
    cosine : bool
        Fall to zero as a cosine; else the rate stays.
    warmup : float
        Share of the steps in which the rate rises.
    augment : str
        How inputs are changed at random, an option of ``dataset.augment``.
    momentum : float, optional
        Of SGD, in the place of AdamW.
    """

    steps: int
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    cosine: bool = True
    warmup: float = 0.1
    augment: str = "none"
    momentum: float | None = None

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Of groups of parameters."""
        if self.momentum is None:
            return torch.optim.AdamW(groups, lr=self.lr, fused=True)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)

    def rate(self, step: int) -> float:
        """Share of the learning rate in a step, counted from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return (step + 1) / rising
        if not self.cosine:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


@dataclass(frozen=True, eq=False)
class Lesson:
    """Examples to learn from, of a data set.

    Attributes
    ----------
    examples : Examples
        What is learned from.
    data : LabelledData
        Says how they become the input of a network.
    device : str
    seed : int
        Keys the order of the examples and their augmentation.
    """

    examples: Examples
    data: LabelledData
    device: str = "cpu"
    seed: int = 0

    def batches(self, size: int, augment: str, purpose: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without end; each pass over the examples is drawn by (seed, purpose, pass).

        The last examples of a pass that do not fill a batch are left out, unless they are all.
        """
        count, number = len(self.examples), 0
        change = self.data.augmentation(augment)
        size = min(size, count)
        while True:
            random = seeding.generator(self.seed, purpose, number)
            order = torch.randperm(count, generator=random)
            for chosen in torch.split(order[: count - count % size], size):
                inputs, labels = self.examples.inputs[chosen], self.examples.labels[chosen]
                if change is not None:
                    inputs = change(inputs, random)
                yield self.data.prepare(inputs.to(self.device)), labels.to(self.device)
            number += 1


def plain_loss(inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy."""
    return cross_entropy(logits, labels)


def distillation(teacher: nn.Module, temperature: float, hard: float) -> Loss:
    """hard·CE + τ²·KL of the softened distributions, teacher ‖ student.

    Source: arXiv 1503.02531. τ² keeps the gradient's size as τ changes.
    """
    teacher.eval()

    def loss(inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = softmax(teacher(inputs) / temperature, 1)
        given = log_softmax(logits / temperature, 1)
        # The mean over labels, of which a sequence has one at each position.
        soft = temperature**2 * kl_div(given, wanted, reduction="sum") / labels.numel()
        return soft + hard * cross_entropy(logits, labels) if hard else soft

    return loss


def fit(
    model: nn.Module,
    lesson: Lesson,
    recipe: Recipe,
    *,
    purpose: str,
    loss: Loss = plain_loss,
    parameters: Sequence[nn.Parameter] | None = None,
    exempt: Sequence[nn.Parameter] = (),
    report: Report | None = None,
    resume: Resume | None = None,
) -> None:
    """Train a network in place.

    Parameters
    ----------
    purpose
        Keys the random draws, with the lesson's seed.
    parameters
        What is trained; None: all.
    exempt
        Those of them without weight decay, besides vectors.
    resume
        Where a training that is interrupted goes on; what it writes is the caller's to remove.
    """
    chosen = list(model.parameters()) if parameters is None else list(parameters)
    free = {id(p) for p in exempt}
    decayed = [p for p in chosen if p.dim() >= 2 and id(p) not in free]
    plain = [p for p in chosen if p.dim() < 2 or id(p) in free]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = recipe.optimizer([g for g in groups if g["params"]])
    begin = resume.restore(model, chosen, optimizer) if resume else 0
    if begin == recipe.steps:
        return
    model.train()
    batches = lesson.batches(recipe.batch_size, recipe.augment, purpose)
    draws = seeding.seeded(lesson.seed, f"{purpose} dropout")
    with draws, asked_to_stop() if resume else nullcontext(lambda: False) as stop:
        for step, (inputs, labels) in zip(range(recipe.steps), batches, strict=False):
            if step < begin:
                continue  # its batch was drawn, so that the next one is the same as ever
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * recipe.rate(step)
            optimizer.zero_grad(set_to_none=True)
            value = loss(inputs, model(inputs), labels)
            torch.autograd.backward(value, inputs=chosen)
            optimizer.step()
            if report:
                report(step + 1, float(value.detach()))
            if resume:
                last = stop() or step + 1 == recipe.steps
                resume.keep(step + 1, model, chosen, optimizer, now=last)
            if stop():
                raise KeyboardInterrupt
