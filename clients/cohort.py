"""Local training of several clients at once: their steps in one call.

Each client's sums are those of training it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from clients.optimisers import StackedOptimiser, clip_each
from clients.stack import Stack, StepBatch
from clients.training import Samples, absent_classes
from fedwsa.algorithms.objective import Objective, overrides, stacks
from fedwsa.data.examples import batch_sizes
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.sections import Local

MOST_BYTES = 1 << 28
"""Inputs of an epoch, of all clients together, that are held at once."""


def why_not(local: Local, objectives: Iterable[type[Objective]] = ()) -> str | None:
    """Why clients that train like this cannot be trained at once; None if they can."""
    if alone := next((kind for kind in objectives if not stacks(kind)), None):
        return f"{alone.__name__} looks at one model"
    if local.weight_augmentation != "off":
        return "local.weight_augmentation is set"
    return None


class _Batches:
    """The batches of several clients, each at its own place in its own epoch.

    Inputs and labels of an epoch are ``(K, T, B, …)``, padded with zeros, and a client's are drawn
    as when it trains alone, when its epoch begins.
    """

    def __init__(self, clients: Sequence[Samples], sizes: Sequence[list[int]]) -> None:
        self._clients, self._sizes = clients, sizes
        self._steps, self._widest = max(map(len, sizes)), max(map(max, sizes))
        self._places = [self._place(own).to(clients[0].labels.device) for own in sizes]
        self._held: tuple[Tensor, Tensor] | None = None

    def _place(self, sizes: Sequence[int]) -> Tensor:
        """Where each sample of an epoch stands among the padded ones."""
        counts = torch.tensor(sizes)
        rank = torch.arange(len(counts)).repeat_interleave(counts)
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        return rank * self._widest + torch.arange(len(first)) - first

    def at(self, step: int, active: int) -> tuple[Tensor, Tensor, list[int]]:
        """Inputs ``(A, B, …)``, labels and sizes of the batches of the first A clients."""
        places = [step % len(own) for own in self._sizes[:active]]
        for k, place in enumerate(places):
            if not place:
                self._draw(k)
        assert self._held is not None
        x, y = (
            t[:active].view(active, self._steps, self._widest, *t.shape[2:]) for t in self._held
        )
        sizes = [own[place] for own, place in zip(self._sizes, places, strict=False)]
        if len(set(places)) == 1:
            return x[:, places[0]], y[:, places[0]], sizes
        rows, at = (torch.tensor(i, device=y.device) for i in (range(active), places))
        return x[rows, at], y[rows, at], sizes

    def _draw(self, k: int) -> None:
        pieces = list(self._clients[k].epoch(self._sizes[k]))
        parts = [
            torch.cat(part) if len(part) > 1 else part[0] for part in zip(*pieces, strict=True)
        ]
        if self._held is None:
            shape = (len(self._clients), self._steps * self._widest)
            x, y = (part.new_zeros(*shape, *part.shape[1:]) for part in parts)
            self._held = x, y
        for held, part in zip(self._held, parts, strict=True):
            held[k, self._places[k]] = part


def count_steps(samples: int, conditions: Conditions) -> int:
    """Steps of a client's training."""
    steps = len(batch_sizes(samples, conditions.batch_size)) * conditions.epochs
    return steps if conditions.steps is None else min(steps, conditions.steps)


def train_stack(
    stack: Stack,
    clients: Sequence[Samples],
    local: Local,
    conditions: Sequence[Conditions],
    objectives: Sequence[Sequence[Objective]],
    keys: Sequence[int] | None = None,
    trains: Callable[[str], bool] | None = None,
) -> list[float]:
    """Train the clients of a stack in place, as :func:`clients.training.train` would each.

    Parameters
    ----------
    stack
        With the received weights; ``objectives`` were made for its clients.
    clients
        Ordered by number of steps, most first: those that are done drop out at the end.
    conditions
        Of each; the optimiser is the same.
    keys
        A number of each, which dropout follows from; None: zeros.
    trains
        Which weights move, by name; None: all.

    Returns
    -------
    list of float
        Mean task loss of each.
    """
    device = clients[0].labels.device
    sizes = [
        batch_sizes(len(samples), own.batch_size)
        for samples, own in zip(clients, conditions, strict=True)
    ]
    steps = [
        count_steps(len(samples), own) for samples, own in zip(clients, conditions, strict=True)
    ]
    if sorted(steps, reverse=True) != steps:
        raise ValueError("the clients must be ordered by their number of steps, most first")
    moving = [name for name in stack.weights if trains is None or trains(name)]
    weights, gradients = ([of[n] for n in moving] for of in (stack.weights, stack.gradients))
    optimiser = StackedOptimiser(weights, gradients, conditions, local.momentum)
    batches = _Batches(clients, sizes)
    numbers = torch.tensor(list(keys) if keys is not None else [0] * len(clients), device=device)
    seen = _seen(clients) if local.mask_absent else None
    total = torch.zeros(len(clients), device=device)
    active = len(clients)
    with stack.with_losses_of(objectives):
        for step in range(steps[0]):
            while steps[active - 1] <= step:
                active -= 1
            x, y, counts = batches.at(step, active)
            classes = None if seen is None else seen[:active]
            batch = StepBatch(x, y, counts, step, numbers[:active], classes)
            losses = stack.backward(batch)
            if any(objectives):
                _add(stack, batch, objectives[:active])
            if local.clip_norm is not None:
                clip_each([g[:active] for g in gradients], local.clip_norm)
            optimiser.step(active)
            total[:active] += losses * torch.tensor(counts, device=device)
    trained = [sum(islice(cycle(own), count)) for own, count in zip(sizes, steps, strict=True)]
    return (total / torch.tensor(trained, device=device)).tolist()


def _add(stack: Stack, batch: StepBatch, objectives: Sequence[Sequence[Objective]]) -> None:
    """What the objectives of the first clients make of the gradients of a step."""
    of_kinds = list(zip(*objectives, strict=True))
    held, added = stack.first(len(objectives))
    for alike in of_kinds:
        if overrides(type(alike[0]), "descend"):
            type(alike[0]).descend(alike, held, added, stack.elsewhere(batch))
    for alike in of_kinds:
        type(alike[0]).add_gradients(alike, held, added)


def _seen(clients: Sequence[Samples]) -> Tensor:
    """Which classes each client has: bool ``(K, C)``, up to the last that any has."""
    last = max(int(samples.labels.max()) for samples in clients)
    return torch.stack([~absent_classes(torch.unique(s.labels), last + 1) for s in clients])


def fits(clients: Sequence[Samples]) -> bool:
    """Whether an epoch of all of them may be held in memory at once."""
    longest = max(len(samples) for samples in clients)
    return longest * len(clients) * clients[0].inputs[0].numel() * 4 <= MOST_BYTES
