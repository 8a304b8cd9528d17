"""Local training of several clients at once: their weights stacked, their steps in one call.

Small models spend their time in the calls of Python and torch, not in arithmetic; a cohort
shares the calls. Each client's sums are those of training it alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy, pad

from clients.optimisers import StackedOptimiser, clip_each
from clients.passes import Row, StackedPasses
from clients.training import Samples, absent_classes, without
from fedwsa.algorithms.objective import Objective, stacks
from fedwsa.data.examples import batch_sizes
from fedwsa.models.dropout import Masks
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.sections import Local
from fedwsa.scope.moments import precise

MOST_BYTES = 1 << 28
"""Inputs of an epoch, of all clients together, that are held at once."""

_MOST_PADDING = 1.5  # times the samples that there are


def why_not(local: Local, objectives: Iterable[type[Objective]] = ()) -> str | None:
    """Why clients that train like this cannot be trained at once; None if they can."""
    if alone := next((kind for kind in objectives if not stacks(kind)), None):
        return f"{alone.__name__} looks at one model"
    if local.weight_augmentation != "off":
        return "local.weight_augmentation is set"
    return None


class Stack:
    """The weights of K clients, one above the other.

    Parameters
    ----------
    model
        Holds what all of them start from.
    count
        K.
    padded
        Whether batches of several lengths may be filled up to one. Not where a model looks across
        a batch: those of one length are then one call.
    keeping
        Buffers that change in training, of which each client has its own.
    bf16
        Compute in bfloat16 where torch's autocast does.

    Attributes
    ----------
    weights, gradients : dict
        Of what is trained, by name: ``(K, …)``.
    buffers : dict
        Those that each client has for itself.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        count: int,
        padded: bool = True,
        keeping: Collection[str] = (),
        bf16: bool = False,
    ) -> None:
        self.padded, self._bf16 = padded, bf16
        self.weights = {
            name: p.detach().expand(count, *p.shape).clone()
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        self.gradients = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.buffers = {
            name: b.detach().expand(count, *b.shape).clone()
            for name, b in model.named_buffers()
            if name in keeping
        }
        self.masks = Masks(model)

        def loss(
            weights: dict[str, Tensor],
            buffers: dict[str, Tensor],
            x: Tensor,
            y: Tensor,
            there: Tensor,
            key: Tensor,
            seen: Tensor | None,
            others: list[Row],
        ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            after = {name: b.clone() for name, b in buffers.items()}
            self.masks.begin(key, self._step)
            logits = precise(functional_call(model, {**weights, **after}, (x,)))
            if seen is not None:
                logits = without(pad(~seen, (0, logits.shape[1] - len(seen)), value=True), logits)
            each = cross_entropy(logits, y, reduction="none")
            share = there.to(each.dtype) / there.sum()
            # A sequence has a loss at each position.
            task = (each if each.dim() == 1 else each.mean(1)) @ share
            more = self._passes.loss(x, others)
            return (task if more is None else task + more @ share.to(more.dtype)), task, after

        self._model, self._loss, self._step = model, loss, 0
        self._passes = StackedPasses(model, [], [])

    def client(self, k: int) -> dict[str, Tensor]:
        """The weights of client k, with their gradients, as views."""
        views = {}
        for name, weight in self.weights.items():
            views[name] = weight[k]
            views[name].grad = self.gradients[name][k]
        return views

    @torch.no_grad()
    def set(self, k: int, tensors: Mapping[str, Tensor]) -> None:
        """Give client k other values of some tensors.

        Raises
        ------
        KeyError
            If all clients have one in common.
        """
        held = self.weights | self.buffers
        for name, tensor in tensors.items():
            held[name][k].copy_(tensor)

    def state(self, k: int, rest: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All that client k has: its own tensors, and of the rest what all have in common."""
        held = self.weights | self.buffers
        return {name: held[name][k] if name in held else t for name, t in rest.items()}

    def arrays(self, rest: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As :meth:`state`, of all clients: ``(K, …)``."""
        held, count = self.weights | self.buffers, len(next(iter(self.weights.values())))
        return {
            name: held[name] if name in held else t.expand(count, *t.shape)
            for name, t in rest.items()
        }

    @contextmanager
    def with_losses_of(self, objectives: Sequence[Sequence[Objective]]) -> Iterator[None]:
        """Let the losses of the clients' objectives be added in :meth:`backward`."""
        held, without_losses = self.weights | self.buffers, self._passes
        begun = [{name: t[k] for name, t in held.items()} for k in range(len(objectives))]
        self._passes = StackedPasses(self._model, objectives, begun)
        try:
            with self._passes:
                yield
        finally:
            self._passes = without_losses

    def first(self, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and gradients of the first clients, by name, as views."""
        held, added = (
            {name: t[:count] for name, t in of.items()} for of in (self.weights, self.gradients)
        )
        return held, added

    def backward(
        self,
        x: Tensor,
        y: Tensor,
        sizes: Sequence[int],
        step: int = 0,
        keys: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Gradients of the first A clients; returns their losses, ``(A,)``.

        Parameters
        ----------
        x, y
            Inputs ``(A, B, …)`` and labels: ``sizes[k]`` of client k, then padding.
        step, keys
            Which step of the training, and a number of each client, int64 ``(A,)``: what dropout
            follows from. None: zeros.
        seen
            Which classes each client has, bool ``(A, C)``; the logits of others count as 0.
        """
        # Of lengths that differ much, most of what is computed would be padding.
        little = max(sizes) * len(sizes) <= _MOST_PADDING * sum(sizes)
        kinds = [max(sizes)] if self.padded and little else sorted(set(sizes))
        losses = torch.zeros(len(sizes), device=y.device)
        counts = torch.tensor(sizes, device=y.device)
        keys = torch.zeros_like(counts) if keys is None else keys
        self._step = step
        in_dims = (0, 0, 0, 0, 0, 0, None if seen is None else 0, 0)
        of_each = vmap(self._loss, in_dims=in_dims)
        autocast = torch.autocast(y.device.type, torch.bfloat16, enabled=self._bf16)
        with self.masks:
            for longest in kinds:
                rows = [k for k, size in enumerate(sizes) if len(kinds) == 1 or size == longest]
                every = len(rows) == len(sizes)  # a slice copies nothing
                chosen = slice(len(sizes)) if every else torch.tensor(rows, device=y.device)
                there = torch.arange(longest, device=y.device) < counts[chosen][:, None]
                leaves = {name: w[chosen].requires_grad_() for name, w in self.weights.items()}
                with autocast:
                    whole, task, after = of_each(
                        leaves,
                        {name: b[chosen] for name, b in self.buffers.items()},
                        x[chosen, :longest],
                        y[chosen, :longest],
                        there,
                        keys[chosen],
                        None if seen is None else seen[chosen],
                        self._passes.rows(chosen),
                    )
                # No loss depends on another client's weights.
                gradients = torch.autograd.grad(
                    whole.sum(), list(leaves.values()), materialize_grads=True
                )
                for name, each in zip(leaves, gradients, strict=True):
                    self.gradients[name][chosen] = each
                for name, each in after.items():
                    self.buffers[name][chosen] = each.detach()
                losses[chosen] = task.detach().to(losses.dtype)
        return losses


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
    weights, gradients = (list(held.values()) for held in (stack.weights, stack.gradients))
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
            losses = stack.backward(x, y, counts, step, numbers[:active], classes)
            if any(objectives):
                held, added = stack.first(active)
                for alike in zip(*objectives[:active], strict=True):
                    type(alike[0]).add_gradients(alike, held, added)
            if local.clip_norm is not None:
                clip_each([g[:active] for g in gradients], local.clip_norm)
            optimiser.step(active)
            total[:active] += losses * torch.tensor(counts, device=device)
    trained = [sum(islice(cycle(own), count)) for own, count in zip(sizes, steps, strict=True)]
    return (total / torch.tensor(trained, device=device)).tolist()


def _seen(clients: Sequence[Samples]) -> Tensor:
    """Which classes each client has: bool ``(K, C)``, up to the last that any has."""
    last = max(int(samples.labels.max()) for samples in clients)
    return torch.stack([~absent_classes(torch.unique(s.labels), last + 1) for s in clients])


def fits(clients: Sequence[Samples]) -> bool:
    """Whether an epoch of all of them may be held in memory at once."""
    longest = max(len(samples) for samples in clients)
    return longest * len(clients) * clients[0].inputs[0].numel() * 4 <= MOST_BYTES
