"""What modules hold in plain attributes: neither parameters, buffers nor modules of theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from copy import deepcopy

from torch import Tensor, nn


def attributes(model: nn.Module) -> Iterator[tuple[str, object]]:
    """All that modules hold, by name; also what is in dicts, lists, tuples and sets of theirs."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for leaf, held in vars(module).items():
            yield from _within(f"{prefix}.{leaf}".lstrip("."), held, seen)


def _within(name: str, held: object, seen: set[int]) -> Iterator[tuple[str, object]]:
    yield name, held
    if not isinstance(held, dict | list | tuple | set | frozenset | deque) or id(held) in seen:
        return
    seen.add(id(held))
    for key, inner in held.items() if isinstance(held, dict) else enumerate(held):
        yield from _within(f"{name}.{key}", inner, seen)


def loose(model: nn.Module) -> dict[str, Tensor]:
    """Tensors in plain attributes, by name; without those that are parameters or buffers as well.

    Nor is the ``weight`` that a hook of torch's older ``weight_norm``, ``spectral_norm`` and
    ``prune`` makes from parameters before each forward pass.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    known = {id(tensor) for tensor in [*names.values(), *model.buffers()]}
    return {
        name: held
        for name, held in attributes(model)
        if isinstance(held, Tensor) and id(held) not in known and held.numel()
        if f"{name}_g" not in names and f"{name}_orig" not in names
    }


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network, also where an attribute was computed, of which torch makes none."""
    held = (value for _, value in attributes(model))
    computed = [value for value in held if isinstance(value, Tensor) and value.grad_fn is not None]
    return deepcopy(model, {id(value): value.detach().clone() for value in computed})
