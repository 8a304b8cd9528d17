"""The network that a process keeps for all its clients, lent to one of them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fedwsa.models.attributes import attributes


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Undo what happens to a network but for the values of its tensors, however this ends.

    Hooks, replaced methods, training modes, what is trained, and what else modules hold (counters,
    lists, generators) are put back, also where an objective, or the end of a client's time,
    interrupts whoever would have done it.

    Parameters
    ----------
    model
        Keeps the tensors that it has when this begins, and their new values.
    """
    modules = [(module, type(module), dict(vars(module))) for module in model.modules()]
    undone = {id(held): _undoing(held) for _, held in attributes(model)}
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, kind, before in modules:
            module.__class__ = kind
            now = vars(module)
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
        for undo in filter(None, undone.values()):
            undo()
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None


def _undoing(held: object) -> Callable[[], object] | None:
    """What gives a thing in a model the content that it has now; None: it has none of its own."""
    if isinstance(held, dict):
        return partial(_refill, held.clear, held.update, dict(held))
    if isinstance(held, set):
        return partial(_refill, held.clear, held.update, set(held))
    if isinstance(held, list | deque):
        return partial(_refill, held.clear, held.extend, list(held))
    if isinstance(held, torch.Generator):
        return partial(held.set_state, held.get_state())
    if isinstance(held, np.random.Generator):
        return partial(setattr, held.bit_generator, "state", held.bit_generator.state)
    if isinstance(held, random.Random):
        return partial(held.setstate, held.getstate())
    return None


def _refill(
    clear: Callable[[], None], fill: Callable[[Any], None], content: Collection[Any]
) -> None:
    """In place: others may refer to it, as the handle of a hook does."""
    clear()
    fill(content)
