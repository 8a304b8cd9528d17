"""Local training of one model on one client's samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedwsa import seeding
from fedwsa.config import Local
from fedwsa.objectives import Objective

Prepare = Callable[[Tensor], Tensor]
"""Pixels as stored → the input of the model (normalised, perhaps augmented)."""


@dataclass(frozen=True)
class Conditions:
    """Under which a client trains, the same in all rounds."""

    lr: float
    weight_decay: float


def draw_conditions(local: Local, seed: int, client: int) -> Conditions:
    """A client's learning rate and weight decay, keyed by (seed, client)."""
    draw = np.random.default_rng(seeding.key(seed, "conditions", client))
    factor = draw.choice(local.lr_factors)
    decay = draw.choice(local.weight_decays or [local.weight_decay])
    return Conditions(float(local.lr * factor), float(decay))


def batches(n: int, size: int, random: torch.Generator) -> Iterator[Tensor]:
    """Indices 0 … n−1 in random order, in batches of ``size``.

    A last batch of a single sample joins the one before: BatchNorm cannot train on one.
    """
    parts = list(torch.split(torch.randperm(n, generator=random), size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


def train(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    prepare: Prepare,
    local: Local,
    conditions: Conditions,
    objectives: Sequence[Objective],
    random: torch.Generator,
) -> float:
    """Train a model in place for ``local.epochs`` passes over the samples.

    Parameters
    ----------
    model
        With the received weights; ``objectives`` were made for it.
    pixels, labels
        The client's training samples, shapes ``(n, C, H, W)`` and ``(n,)``.
    prepare
        Makes the input of the model from a batch of pixels.
    random
        Draws the order of the samples.

    Returns
    -------
    float
        Mean task loss over all samples and epochs, as seen while training.
    """
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=conditions.lr,
        momentum=local.momentum,
        weight_decay=conditions.weight_decay,
    )
    total = torch.zeros((), device=labels.device)
    for _ in range(local.epochs):
        for batch in batches(len(labels), local.batch_size, random):
            chosen = batch.to(labels.device)
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(model(prepare(pixels[chosen])), labels[chosen])
            torch.autograd.backward(loss)
            for objective in objectives:
                objective.add_gradient()
            optimizer.step()
            total += loss.detach() * len(chosen)
    return float(total) / (len(labels) * local.epochs)
