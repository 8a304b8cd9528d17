"""The network that a process keeps for all its clients, lent to one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Undo what happens to a network but for the values of its tensors, however this ends.

    Hooks, replaced methods, training modes, and what is trained are put back, also where an
    objective, or the end of a client's time, interrupts whoever would have done it.

    Parameters
    ----------
    model
        Keeps the tensors that it has when this begins, and their new values.
    """
    modules = [(module, type(module), _copied(vars(module))) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, kind, before in modules:
            module.__class__ = kind
            now = vars(module)
            for name in now.keys() - before.keys():
                del now[name]
            for name, value in before.items():
                if isinstance(value, dict) and isinstance(now.get(name), dict):
                    now[name].clear()  # in place: the handle of a hook refers to it
                    now[name].update(value)
                else:
                    now[name] = value
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    return {k: v.copy() if isinstance(v, dict) else v for k, v in attributes.items()}
