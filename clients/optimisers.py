"""The steps of torch's optimisers: of one client, and of several at once.

Torch's classes import its compiler when the first is made, for a second of each worker; the
functions that they call do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedwsa.schema.conditions import Conditions
from fedwsa.schema.sections import Optimiser
from fedwsa.scope.moments import precise

_BETAS, _EPS = (0.9, 0.999), 1e-8  # as torch's Adam has them


class Group(TypedDict, total=False):
    """Weights with a decay of their own.

    Attributes
    ----------
    params : list of Parameter
    weight_decay : float
        Where absent, that of the client's conditions.
    """

    params: list[nn.Parameter]
    weight_decay: float


class SingleOptimiser:
    """SGD, Adam or AdamW of one client, to the bit as :mod:`torch.optim` has them.

    Parameters
    ----------
    groups
        Weights in single or double precision: torch's fused SGD leaves half precision as it is on a
        CPU. Those without a gradient stay as they are.
    conditions
        The optimiser, its rate and decay.
    momentum
        Of SGD.
    fused
        By kernels that take all weights at once.
    """

    def __init__(
        self, groups: Sequence[Group], conditions: Conditions, momentum: float, fused: bool
    ) -> None:
        self._kind = conditions.optimiser
        decay = conditions.weight_decay
        self._groups = [(g["params"], g.get("weight_decay", decay)) for g in groups]
        self._moments: dict[nn.Parameter, Any] = {}
        self._usual: dict[str, Any] = {"lr": conditions.lr, "fused": fused, "maximize": False}
        if self._kind == "sgd":
            self._usual |= {"momentum": momentum, "dampening": 0.0, "nesterov": False}
        else:
            self._usual |= {"beta1": _BETAS[0], "beta2": _BETAS[1], "eps": _EPS, "amsgrad": False}
            self._usual |= {"decoupled_weight_decay": self._kind == "adamw"}

    @torch.no_grad()
    def step(self) -> None:
        """A step by the gradients that the weights have."""
        for weights, decay in self._groups:
            given = [w for w in weights if w.grad is not None]
            fresh = [w for w in given if w not in self._moments]
            for some in (fresh, [w for w in given if w in self._moments]):
                if some:
                    self._step(some, decay)

    def _step(self, weights: list[nn.Parameter], decay: float) -> None:
        """Of weights that have all been stepped before, or none has."""
        gradients = [w.grad for w in weights if w.grad is not None]
        if self._kind == "sgd":
            buffers = [self._moments.get(w) for w in weights]
            sgd([*weights], gradients, buffers, weight_decay=decay, **self._usual)
            self._moments |= zip(weights, buffers, strict=True)
            return
        for w in weights:
            if w not in self._moments:
                self._moments[w] = torch.zeros_like(w), torch.zeros_like(w), self._count(w)
        moments = [self._moments[w] for w in weights]
        first, second, steps = ([own[i] for own in moments] for i in range(3))
        adam([*weights], gradients, first, second, [], steps, weight_decay=decay, **self._usual)

    def _count(self, weight: Tensor) -> Tensor:
        """Of steps, where the kernels look for it."""
        return torch.zeros((), device=weight.device if self._usual["fused"] else "cpu")


class StackedOptimiser:
    """SGD, Adam or AdamW on weights ``(K, …)``, each client with its own rate and decay.

    Parameters
    ----------
    weights, gradients
        Tensors of the same shapes, which are changed in place, and read.
    conditions
        Of each client; they have one optimiser.
    momentum
        Of SGD.
    """

    @torch.no_grad()
    def __init__(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        conditions: Sequence[Conditions],
        momentum: float,
    ) -> None:
        kinds: set[Optimiser] = {own.optimiser for own in conditions}
        if len(kinds) != 1:
            raise ValueError("the clients of a stack must have one optimiser")
        [self._kind] = kinds
        self._momentum, self._steps = momentum, 0
        self._weights, self._gradients = list(weights), list(gradients)
        self._lr, self._decay = (
            _PerClient([getattr(own, name) for own in conditions], weights)
            for name in ("lr", "weight_decay")
        )
        moving = self._kind != "sgd" or momentum > 0
        self._first = [torch.zeros_like(w) for w in weights] if moving else []
        self._second = [torch.zeros_like(w) for w in weights] if self._kind != "sgd" else []

    @torch.no_grad()
    def step(self, active: int) -> None:
        """A step of the first ``active`` clients, who have taken part in all steps before."""
        w, g, first, second = (
            [t[:active] for t in tensors]
            for tensors in (self._weights, self._gradients, self._first, self._second)
        )
        self._steps += 1
        if self._kind == "adamw":
            self._decay.shrink(w, self._lr)
        else:
            self._decay.add(g, w)
        if self._kind == "sgd":
            if first:
                torch._foreach_mul_(first, self._momentum)
                torch._foreach_add_(first, g)
            self._lr.subtract(w, first or g)
            return
        torch._foreach_lerp_(first, g, 1 - _BETAS[0])
        torch._foreach_mul_(second, _BETAS[1])
        torch._foreach_addcmul_(second, g, g, 1 - _BETAS[1])
        corrected = [1 - beta**self._steps for beta in _BETAS]
        way = list(torch._foreach_sqrt(second))
        torch._foreach_div_(way, corrected[1] ** 0.5)
        torch._foreach_add_(way, _EPS)
        way = list(torch._foreach_div(first, way))
        torch._foreach_div_(way, corrected[0])
        self._lr.subtract(w, way)


class _PerClient:
    """A number of each client; one for all, where they are equal."""

    def __init__(self, values: Sequence[float], weights: Sequence[Tensor]) -> None:
        self._same = values[0] if len(set(values)) == 1 else None
        first = weights[0] if weights else torch.zeros(())
        self._all = torch.tensor(values, dtype=precise(first).dtype, device=first.device)
        self._shapes = [(-1, *[1] * (w.dim() - 1)) for w in weights]

    def _columns(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        active = self._all[: len(tensors[0])] if tensors else self._all
        return [active.view(s).to(t.dtype) for t, s in zip(tensors, self._shapes, strict=True)]

    def add(self, to: list[Tensor], of: list[Tensor]) -> None:
        """``to += number * of``."""
        if self._same is None:
            torch._foreach_addcmul_(to, of, self._columns(of))
        elif self._same:
            torch._foreach_add_(to, of, alpha=self._same)

    def subtract(self, to: list[Tensor], of: list[Tensor]) -> None:
        """``to -= number * of``."""
        if self._same is None:
            torch._foreach_addcmul_(to, of, self._columns(of), -1)
        else:
            torch._foreach_add_(to, of, alpha=-self._same)

    def shrink(self, tensors: list[Tensor], lr: _PerClient) -> None:
        """``tensors *= 1 - lr * number``: weight decay apart from the gradient."""
        if self._same is not None and lr._same is not None:
            torch._foreach_mul_(tensors, 1 - lr._same * self._same)
            return
        pairs = zip(lr._columns(tensors), self._columns(tensors), strict=True)
        torch._foreach_mul_(tensors, [1 - rate * decay for rate, decay in pairs])


@torch.no_grad()
def clip_each(gradients: Sequence[Tensor], most: float) -> None:
    """Shorten the gradients ``(A, …)`` of each client to a norm, as ``clip_grad_norm_`` would."""
    if not gradients:
        return
    squares = [g.reshape(len(g), -1).square().sum(1) for g in gradients]
    factor = (most / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))
