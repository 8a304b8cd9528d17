"""How much memory clients take that are trained at once."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy

from fedwsa import seeding
from fedwsa.models import InputShape, blank_inputs
from fedwsa.models.attributes import copied
from fedwsa.schema.sections import Local

_SHARE = 0.8  # of what is free; the rest is for what comes and goes within an operation


def client_bytes(model: nn.Module, shape: InputShape, local: Local) -> int:
    """What a client of a stack takes: weights, gradients, moments, and what backward needs.

    Parameters
    ----------
    model
        A step of a copy is tried, where the model lies.
    shape
        Of an example.
    local
        Optimisers and the largest batch.
    """
    weights = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    kinds = set(local.optimisers or [local.optimiser])
    moments = 2 if kinds - {"sgd"} else int(local.momentum > 0)
    # Gradients twice: as backward makes them, and those of the stack.
    return weights * (3 + moments) + _saved_bytes(model, shape, local.largest_batch)


def _saved_bytes(model: nn.Module, shape: InputShape, batch: int) -> int:
    """What a forward pass leaves for the backward one, beside the weights."""
    model = copied(model).train()
    device = next(model.parameters()).device
    inputs = blank_inputs(shape, batch, device)
    labels = torch.zeros(inputs.shape if len(shape) == 1 else batch, dtype=torch.int64)
    kept = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
    alive: list[Tensor] = []  # a place that is free again would be counted once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        alive.append(tensor)
        return tensor

    with seeding.seeded(0, "footprint"), saved_tensors_hooks(keep, lambda tensor: tensor):
        cross_entropy(model(inputs), labels.to(device))
    return sum(kept.values())


def most_at_once(bytes_: int, free: int, sharing: int) -> int:
    """How many clients of so many bytes fit, where so many workers share what is free."""
    return max(1, int(_SHARE * free / sharing / max(1, bytes_)))


def free_bytes(device: str) -> int:
    """What nobody uses of a GPU's memory, or of this machine's."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62  # nobody knows: all fits


def sharing(device: str, workers: int) -> int:
    """How many workers share a device's memory."""
    return math.ceil(workers / torch.cuda.device_count()) if device == "cuda" else workers
