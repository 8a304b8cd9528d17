"""The weights of several clients, one above the other, and a call for the gradients of all.

Small models spend their time in the calls of Python and torch, not in arithmetic; a cohort
shares the calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy, pad

from clients.passes import Row, StackedPasses
from clients.training import without
from fedwsa.algorithms.objective import GradientAt, Objective
from fedwsa.models.dropout import Masks
from fedwsa.scope.moments import precise

_MOST_PADDING = 1.5  # times the samples that there are


@dataclass(frozen=True, eq=False)
class StepBatch:
    """The batches of a step, of A clients.

    Attributes
    ----------
    x, y : Tensor
        Inputs ``(A, B, …)`` and labels: ``sizes[k]`` of client k, then padding.
    sizes : sequence of int
    step : int
        Of the training.
    keys : Tensor, optional
        A number of each client, int64 ``(A,)``: with the step what dropout follows from. None:
        zeros.
    seen : Tensor, optional
        Which classes each client has, bool ``(A, C)``; the logits of others count as 0.
    """

    x: Tensor
    y: Tensor
    sizes: Sequence[int]
    step: int = 0
    keys: Tensor | None = None
    seen: Tensor | None = None

    def first(self, count: int) -> StepBatch:
        """Those of the first clients."""
        keys, seen = (None if t is None else t[:count] for t in (self.keys, self.seen))
        return replace(
            self, x=self.x[:count], y=self.y[:count], sizes=self.sizes[:count], keys=keys, seen=seen
        )


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
            masked = partial(_masked, seen)
            logits = masked(functional_call(model, {**weights, **after}, (x,)))
            each = cross_entropy(logits, y, reduction="none")
            share = there.to(each.dtype) / there.sum()
            # A sequence has a loss at each position.
            task = (each if each.dim() == 1 else each.mean(1)) @ share
            more = self._passes.loss(x, y, others, logits, masked)
            return (task if more is None else task + more @ share.to(more.dtype)), task, after

        self._model, self._loss, self._step = model, loss, 0
        self._passes = self._without_losses = StackedPasses(model, [], [])

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
        held = self.weights | self.buffers
        begun = [{name: t[k] for name, t in held.items()} for k in range(len(objectives))]
        self._passes = StackedPasses(self._model, objectives, begun)
        try:
            with self._passes:
                yield
        finally:
            self._passes = self._without_losses

    def first(self, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and gradients of the first clients, by name, as views."""
        held, added = (
            {name: t[:count] for name, t in of.items()} for of in (self.weights, self.gradients)
        )
        return held, added

    def backward(self, batch: StepBatch) -> Tensor:
        """Gradients of the first A clients; returns their losses, ``(A,)``."""
        losses = torch.zeros(len(batch.sizes), device=batch.y.device)
        for chosen, gradients, task, after in self._of_each(self.weights, batch):
            for name, each in gradients.items():
                self.gradients[name][chosen] = each
            for name, each in after.items():
                self.buffers[name][chosen] = each
            losses[chosen] = task.to(losses.dtype)
        return losses

    def elsewhere(self, batch: StepBatch) -> GradientAt:
        """The gradients of the task loss of the same batches, at other weights.

        May be asked in later steps, of those clients that are still in training.
        """
        # Of its own: an epoch's batches lie where those of the next will.
        own = replace(batch, x=batch.x.clone(), y=batch.y.clone())

        def at(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
            found = {name: torch.zeros_like(w) for name, w in weights.items()}
            active = own.first(len(next(iter(weights.values()))))
            entered, self._passes = self._passes, self._without_losses
            try:
                with torch.enable_grad():
                    for chosen, gradients, _, _ in self._of_each(weights, active):
                        for name, each in gradients.items():
                            found[name][chosen] = each
            finally:
                self._passes = entered
            return found

        return at

    def _of_each(
        self, weights: Mapping[str, Tensor], batch: StepBatch
    ) -> Iterator[tuple[slice | Tensor, dict[str, Tensor], Tensor, dict[str, Tensor]]]:
        """Of batches of one length at once: whose, gradients, task losses, buffers after."""
        sizes, device = batch.sizes, batch.y.device
        # Of lengths that differ much, most of what is computed would be padding.
        little = max(sizes) * len(sizes) <= _MOST_PADDING * sum(sizes)
        kinds = [max(sizes)] if self.padded and little else sorted(set(sizes))
        counts = torch.tensor(sizes, device=device)
        keys = torch.zeros_like(counts) if batch.keys is None else batch.keys
        self._step, seen = batch.step, batch.seen
        in_dims = (0, 0, 0, 0, 0, 0, None if seen is None else 0, 0)
        of_each = vmap(self._loss, in_dims=in_dims)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self._bf16)
        for longest in kinds:
            rows = [k for k, size in enumerate(sizes) if len(kinds) == 1 or size == longest]
            every = len(rows) == len(sizes)  # a slice copies nothing
            chosen = slice(len(sizes)) if every else torch.tensor(rows, device=device)
            there = torch.arange(longest, device=device) < counts[chosen][:, None]
            leaves = {n: w[chosen].detach().requires_grad_() for n, w in weights.items()}
            with self.masks, autocast:
                whole, task, after = of_each(
                    leaves,
                    {name: b[chosen] for name, b in self.buffers.items()},
                    batch.x[chosen, :longest],
                    batch.y[chosen, :longest],
                    there,
                    keys[chosen],
                    None if seen is None else seen[chosen],
                    self._passes.rows(chosen),
                )
            # No loss depends on another client's weights.
            gradients = torch.autograd.grad(
                whole.sum(), list(leaves.values()), materialize_grads=True
            )
            of_leaves = dict(zip(leaves, gradients, strict=True))
            yield chosen, of_leaves, task.detach(), {n: b.detach() for n, b in after.items()}


def _masked(seen: Tensor | None, logits: Tensor) -> Tensor:
    """Logits in single precision, zero for the classes that a client has not seen."""
    logits = precise(logits)
    if seen is None:
        return logits
    return without(pad(~seen, (0, logits.shape[1] - len(seen)), value=True), logits)
