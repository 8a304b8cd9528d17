"""Which tensors of a network travel in a federation, and which stay where it was built.

==========================================  =====================================================
tensor                                      in a federation
==========================================  =====================================================
floating-point, in the state dict           travels, and is averaged; one that has several names
                                            (tied weights) once, under the first of a parameter
integer or boolean, or not in the state     stays: server and clients build it alike, by the
dict (a buffer that is not persistent, a    run's seed; a file has it if a state dict does
frozen weight that a hook leaves out)
statistics of a static BatchNorm            stay: of one network, and measured where it is scored
                                            (:mod:`fedwsa.models.norms`); a file has them
complex in the state dict, sparse,          is refused: it has no average that we know, or no
quantised, without a shape, float8          file holds it
trained, and not in the state dict          is refused: what it learns would be lost
in a plain attribute of a module            is refused: neither sent, nor saved, nor put back
==========================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedwsa import seeding
from fedwsa.config.component import ConfigError
from fedwsa.models.attributes import loose
from fedwsa.models.norms import static_norms

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes that can be trained and averaged."""

_ALIKE = 1e-4  # of a root mean square: a single bit of a million differs by ten times as much


def travelling(model: nn.Module) -> dict[str, Tensor]:
    """The network's own tensors that travel, each once, by name: parameters, then buffers."""
    saved = model.state_dict(keep_vars=True)
    own = measured(model)
    found = {name: t for name, t in _held(model).items() if name in saved and name not in own}
    return {name: t for name, t in found.items() if t.is_floating_point()}


def staying(model: nn.Module) -> dict[str, Tensor]:
    """The network's own tensors that all build alike, each once, by name."""
    there = travelling(model) | measured(model)
    return {name: t for name, t in _held(model).items() if name not in there}


def measured(model: nn.Module) -> dict[str, Tensor]:
    """Statistics that belong to one network on one set of data, by name: static BatchNorm's."""
    return {
        f"{prefix}.{leaf}".lstrip("."): buffer
        for prefix, norm in static_norms(model).items()
        for leaf, buffer in norm.named_buffers(recurse=False)
    }


def _held(model: nn.Module) -> dict[str, Tensor]:
    """All parameters, then all buffers that are none of them."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    known = set(map(id, parameters.values()))
    return parameters | {k: b for k, b in model.named_buffers() if id(b) not in known}


def tied(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several; the first is the one that it travels under."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def is_count(tensor: Tensor) -> bool:
    """Whether a tensor that stays is a single whole number, as BatchNorm's count of batches."""
    return not tensor.dim() and not tensor.is_floating_point() and not tensor.is_complex()


@torch.no_grad()
def marks(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """A number for each tensor, by which copies of it are recognised.

    ⟨x, r⟩/√n with r drawn from N(0, 1), the same everywhere. Unlike a digest it hardly differs
    where processors round differently. Complex entries count as two, single whole numbers
    (counts) not at all.
    """
    found = {}
    for name, tensor in tensors.items():
        if is_count(tensor) or not tensor.numel():
            continue
        x = _entries(tensor)
        r = torch.randn(len(x), dtype=torch.float64, generator=seeding.generator(0, "marks"))
        found[name] = float(x @ r) / len(x) ** 0.5
    return found


def unlike(given: Mapping[str, float], tensors: Mapping[str, Tensor]) -> str | None:
    """The first name of tensors that are not those whose :func:`marks` are given; None: all are."""
    own = marks(tensors)
    if other := sorted(given.keys() ^ own.keys()):
        return other[0]
    for name, mark in own.items():
        size = float(_entries(tensors[name]).square().mean().sqrt())
        if not abs(mark - given[name]) <= _ALIKE * size:
            return name
    return None


def _entries(tensor: Tensor) -> Tensor:
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.detach().cpu().double().flatten()


def require_shareable(model: nn.Module, where: str) -> None:
    """Refuse a network with a tensor that can neither travel nor be built alike everywhere.

    Raises
    ------
    ConfigError
        Names the tensor; ``where`` is the key to blame.
    """
    saved = model.state_dict(keep_vars=True)
    for name, held in saved.items():
        if not isinstance(held, Tensor):
            kind = type(held).__name__
            raise ConfigError(f"{where}: its state has {name}, a {kind}: it must hold tensors only")
    for name, tensor in _held(model).items():
        if problem := _unshareable(tensor, name in saved):
            raise ConfigError(f"{where}: {name} {problem}")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in saved:
            raise ConfigError(
                f"{where}: {name} is trained, and is not in the state dict under that name: it "
                "would not travel; freeze it with requires_grad_(False), or save it"
            )
    for name in loose(model):
        raise ConfigError(
            f"{where}: {name} is a tensor in a plain attribute, which would differ between server "
            "and clients: make it a buffer by register_buffer (or a parameter)"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"{where}: it has no parameters to train")


def _unshareable(tensor: Tensor, saved: bool) -> str | None:
    if is_lazy(tensor):
        return "has no shape yet: give lazy layers their sizes"
    if tensor.layout != torch.strided:
        return "is sparse, and cannot be sent: make it dense"
    if tensor.is_quantized:
        return "is quantised, and cannot be averaged: quantise the trained network"
    if tensor.is_meta:
        return "is on the meta device: it has no content"
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_complex() and saved:
        return f"is {kind}, and complex tensors cannot be sent: hold real and imaginary parts"
    if tensor.is_floating_point() and tensor.dtype not in FLOATS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        return f"is {kind}, which cannot be averaged; it may be {names}"
    return None
