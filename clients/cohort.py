"""Local training of several clients at once: their weights stacked, their steps in one call.

Small models spend their time in the calls of Python and torch, not in arithmetic; a cohort
shares the calls. Each client's sums are those of training it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from clients.training import Samples
from fedwsa.algorithms.objective import Objective
from fedwsa.data.examples import batch_sizes
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.sections import Local

MOST_BYTES = 1 << 28
"""Inputs of an epoch, of all clients together, that are held at once."""


def why_not(local: Local) -> str | None:
    """Why clients that train like this cannot be trained at once; None if they can."""
    if local.precision != "fp32":
        return "local.precision is not fp32"
    if local.channels_last:
        return "local.channels_last is set"
    if local.mask_absent:
        return "local.mask_absent is set"
    if local.weight_augmentation != "off":
        return "local.weight_augmentation is set"
    if local.clip_norm is not None:
        return "local.clip_norm is set"
    if local.optimisers or local.optimiser != "sgd":
        return "the optimiser is not sgd"
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
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, count: int, padded: bool = True) -> None:
        self.padded = padded
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {k: p.detach().expand(count, *p.shape).clone() for k, p in named.items()}
        self.gradients = {k: torch.zeros_like(w) for k, w in self.weights.items()}
        self._momenta = {k: torch.zeros_like(w) for k, w in self.weights.items()}

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
            each = cross_entropy(functional_call(model, weights, (x,)), y, reduction="none")
            # A sequence has a loss at each position.
            return (each if each.dim() == 1 else each.mean(1)) @ share.to(each.dtype)

        self._gradient = vmap(grad_and_value(loss))

    def client(self, k: int) -> dict[str, Tensor]:
        """The weights of client k, with their gradients, as views."""
        views = {}
        for name, weight in self.weights.items():
            views[name] = weight[k]
            views[name].grad = self.gradients[name][k]
        return views

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor, sizes: Sequence[int]) -> Tensor:
        """Gradients of the first A clients; returns their losses, ``(A,)``.

        Parameters
        ----------
        x, y
            Inputs ``(A, B, …)`` and labels: ``sizes[k]`` of client k, then padding.
        """
        kinds = [max(sizes)] if self.padded else sorted(set(sizes))
        losses = torch.zeros(len(sizes), device=y.device)
        counts = torch.tensor(sizes, device=y.device)
        for longest in kinds:
            rows = [k for k, size in enumerate(sizes) if self.padded or size == longest]
            every = len(rows) == len(sizes)  # a slice copies nothing
            chosen = slice(len(sizes)) if every else torch.tensor(rows, device=y.device)
            lengths = counts[chosen]
            share = (torch.arange(longest, device=y.device) < lengths[:, None]) / lengths[:, None]
            active = {k: w[chosen] for k, w in self.weights.items()}
            gradients, found = self._gradient(
                active, x[chosen, :longest], y[chosen, :longest], share
            )
            for name, gradient in gradients.items():
                self.gradients[name][chosen] = gradient
            losses[chosen] = found.to(losses.dtype)
        return losses

    @torch.no_grad()
    def step(self, active: int, lr: Tensor, decay: Tensor, momentum: float) -> None:
        """A step of SGD of the first ``active`` clients, each with its own rate and decay."""
        for name, weight in self.weights.items():
            w, g, m = (t[name][:active] for t in (self.weights, self.gradients, self._momenta))
            column = (-1, *[1] * (weight.dim() - 1))
            g.add_(w * decay[:active].view(column))
            m.mul_(momentum).add_(g)
            w.sub_(m * lr[:active].view(column))


@dataclass
class _Epoch:
    """An epoch of several clients: inputs and labels ``(K, T, B, …)``, padded with zeros."""

    inputs: Tensor
    labels: Tensor

    @classmethod
    def of(cls, clients: Sequence[Samples], sizes: Sequence[list[int]]) -> _Epoch:
        steps, widest = max(map(len, sizes)), max(map(max, sizes))
        parts = [_whole(samples, own) for samples, own in zip(clients, sizes, strict=True)]
        x, y = parts[0]
        inputs = x.new_zeros(len(parts), steps * widest, *x.shape[1:])
        labels = y.new_zeros(len(parts), steps * widest, *y.shape[1:])
        for k, ((x, y), own) in enumerate(zip(parts, sizes, strict=True)):
            counts = torch.tensor(own)
            rank = torch.arange(len(counts)).repeat_interleave(counts)
            first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
            place = rank * widest + torch.arange(len(y)) - first
            place = place.to(y.device)
            inputs[k, place], labels[k, place] = x, y
        shape = (len(parts), steps, widest)
        return cls(inputs.view(*shape, *x.shape[1:]), labels.view(*shape, *y.shape[1:]))


def _whole(samples: Samples, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """An epoch in one piece, drawn as when the client trains alone."""
    pieces = list(samples.epoch(sizes))
    if len(pieces) == 1:
        return pieces[0]
    inputs, labels = zip(*pieces, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def train_stack(
    stack: Stack,
    clients: Sequence[Samples],
    local: Local,
    conditions: Sequence[Conditions],
    objectives: Sequence[Sequence[Objective]],
) -> list[float]:
    """Train the clients of a stack in place, as :func:`clients.training.train` would each.

    Parameters
    ----------
    stack
        With the received weights; ``objectives`` were made for its clients.
    clients
        Ordered by number of steps, most first: those that are done drop out at the end.
    conditions
        Of each; batch size and epochs are the same.

    Returns
    -------
    list of float
        Mean task loss of each.
    """
    device = clients[0].labels.device
    epochs, batch_size = conditions[0].epochs, conditions[0].batch_size
    if any((c.epochs, c.batch_size) != (epochs, batch_size) for c in conditions):
        raise ValueError("the clients must have one batch size and number of epochs")
    sizes = [batch_sizes(len(samples), batch_size) for samples in clients]
    if sorted(map(len, sizes), reverse=True) != list(map(len, sizes)):
        raise ValueError("the clients must be ordered by their number of steps, most first")
    lr = torch.tensor([c.lr for c in conditions], device=device)
    decay = torch.tensor([c.weight_decay for c in conditions], device=device)
    total = torch.zeros(len(clients), device=device)
    for _ in range(epochs):
        epoch = _Epoch.of(clients, sizes)
        for t in range(len(sizes[0])):
            active = sum(len(own) > t for own in sizes)
            counts = [own[t] for own in sizes[:active]]
            losses = stack.backward(epoch.inputs[:active, t], epoch.labels[:active, t], counts)
            for own in objectives[:active]:
                for objective in own:
                    objective.add_gradient()
            stack.step(active, lr, decay, local.momentum)
            total[:active] += losses * torch.tensor(counts, device=device)
    lengths = torch.tensor([len(samples) for samples in clients], device=device)
    return (total / (lengths * epochs)).tolist()


def fits(clients: Sequence[Samples]) -> bool:
    """Whether an epoch of all of them may be held in memory at once."""
    longest = max(len(samples) for samples in clients)
    return longest * len(clients) * clients[0].inputs[0].numel() * 4 <= MOST_BYTES
