"""The limit of a device: a cohort in one stack, averaged where it lies, and nothing else.

All that a round of FedAvg must compute, and no framework: what a simulator may come near to.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from experiments.bench.shape import BATCH, CLIENTS, SAMPLES, pool

_LR, _MOMENTUM, _DECAY = 0.03, 0.9, 1e-5


def limit_seconds(model: nn.Module, cohort: int, rounds: int, device: str) -> list[float]:
    """Seconds of each round, after one that warms up.

    Parameters
    ----------
    model
        Trained in place: with dropout, torch draws the masks.
    cohort
        How many clients are sampled, and stand in the stack.
    """
    torch.manual_seed(0)
    model = model.to(device).train()
    pixels, labels = (part.to(device) for part in pool())
    shared = {name: p.detach().clone() for name, p in model.named_parameters()}
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        sampled = torch.randperm(CLIENTS, device=device)[:cohort]
        stacked = _trained(model, shared, pixels[sampled], labels[sampled])
        shared = {name: w.mean(0) for name, w in stacked.items()}
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _trained(
    model: nn.Module, shared: dict[str, Tensor], pixels: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The weights of each client after an epoch, ``(K, …)``."""

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, weights, (x,)), y)

    inputs = (pixels.float() / 255 - 0.5) / 0.25
    weights = {name: w.expand(len(labels), *w.shape).clone() for name, w in shared.items()}
    moments = [torch.zeros_like(w) for w in weights.values()]
    each = vmap(loss, randomness="different")
    for first in range(0, SAMPLES, BATCH):
        batch = slice(first, first + BATCH)
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        total = each(leaves, inputs[:, batch], labels[:, batch]).sum()
        steps = list(torch.autograd.grad(total, list(leaves.values())))
        with torch.no_grad():
            held = list(weights.values())
            torch._foreach_add_(steps, held, alpha=_DECAY)
            torch._foreach_mul_(moments, _MOMENTUM)
            torch._foreach_add_(moments, steps)
            torch._foreach_add_(held, moments, alpha=-_LR)
    return weights
