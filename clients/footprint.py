"""How much memory clients take that are trained at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy

from fedwsa import seeding
from fedwsa.models import InputShape, blank_inputs
from fedwsa.models.attributes import copied
from fedwsa.models.inputs import blank_labels
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
    labels = blank_labels(shape, batch, device)
    kept = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
    alive: list[Tensor] = []  # a place that is free again would be counted once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        alive.append(tensor)
        return tensor

    with seeding.seeded(0, "footprint"), saved_tensors_hooks(keep, lambda tensor: tensor):
        cross_entropy(model(inputs), labels)
    return sum(kept.values())


@dataclass(frozen=True)
class Room:
    """What clients of a stack take, and what there is.

    Attributes
    ----------
    each, free : int
        Bytes that a client takes, and that nobody uses.
    sharing : int
        How many workers share these.
    """

    each: int
    free: int
    sharing: int

    @property
    def most(self) -> int:
        """How many clients fit into a worker's share, at least one."""
        return max(1, int(_SHARE * self.free / self.sharing / max(1, self.each)))


def room_for(model: nn.Module, shape: InputShape, local: Local, device: str, workers: int) -> Room:
    """The room for clients of a model, where so many workers train on a kind of device."""
    return Room(client_bytes(model, shape, local), free_bytes(device), sharing(device, workers))


def free_bytes(device: str) -> int:
    """What nobody uses of a GPU's memory, or of this machine's."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)  # which Apple's GPUs share


def sharing(device: str, workers: int) -> int:
    """How many workers share a device's memory."""
    return math.ceil(workers / torch.cuda.device_count()) if device == "cuda" else workers
