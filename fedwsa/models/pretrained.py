"""Weights that a network had before a run, and which of them stay as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fedwsa.config.component import ConfigError
from fedwsa.models.weights import is_safetensors, open_torch, open_weights

DEFAULT = "DEFAULT"
"""As ``weights``: those that the network's library has for it."""


def stored(source: str) -> Mapping[str, Tensor]:
    """The tensors of a file of weights.

    Raises
    ------
    ValueError
        If it holds none.
    """
    file = Path(source)
    opened = open_torch if file.is_file() and not is_safetensors(file) else open_weights
    try:
        return opened(file).tensors()
    except ConfigError as error:
        raise ValueError(f"weights: {error}") from None


@torch.no_grad()
def load_stored(model: nn.Module, stored: Mapping[str, Tensor], source: str) -> None:
    """Give a network stored weights, but for a classifier of other classes.

    A first convolution for colours takes grey images by the sum over its channels.
    """
    own = model.state_dict()
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    first, last = f"{layers[0]}.weight", f"{layers[-1]}."
    taken: dict[str, Tensor] = {}
    for name, tensor in own.items():
        found, head = stored.get(name), name.startswith(last)
        if found is None:
            raise ValueError(f"weights: {source} has no {name}: it is of another network")
        if name == first and found.dim() == 4 and tensor.shape[1] == 1 != found.shape[1]:
            found = found.sum(1, keepdim=True)
        if found.shape != tensor.shape:
            if head and found.shape[1:] == tensor.shape[1:]:
                continue
            shapes = tuple(found.shape), tuple(tensor.shape)
            raise ValueError(f"weights: {name} of {source} is {shapes[0]}, not {shapes[1]}")
        taken[name] = found
    if unknown := sorted(stored.keys() - own.keys()):
        raise ValueError(f"weights: {source} has {unknown[0]}, which the network lacks")
    model.load_state_dict(taken, strict=False)


def freeze_found(model: nn.Module, pattern: str) -> None:
    """Train no parameter in whose name a regular expression is found.

    Raises
    ------
    ValueError
        If it is found in none, or in all.
    """
    try:
        found = [p for name, p in model.named_parameters() if re.search(pattern, name)]
    except re.error as error:
        raise ValueError(f"freeze: {pattern!r} is no regular expression: {error}") from None
    if not found:
        raise ValueError(f"freeze: {pattern!r} is found in no name of a parameter")
    if len(found) == len(list(model.parameters())):
        raise ValueError(f"freeze: {pattern!r} leaves nothing to train")
    for parameter in found:
        parameter.requires_grad_(False)
