"""Networks for images, text, tables and time series, each of any width and depth.

A builder takes the shape of an example, one of :mod:`fedwsa.models.inputs`, and the number of
classes, then its own arguments by name; the defaults stand in ``conf/model/``. ``width``
multiplies the channels or units of all hidden layers. How its first parameter is annotated says
what it is for.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from types import UnionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedwsa import seeding
from fedwsa.config.blame import blaming
from fedwsa.config.component import Component, ConfigError, build, hints_of, locate
from fedwsa.config.places import options
from fedwsa.models.inputs import (
    KINDS,
    DocumentShape,
    ImageShape,
    InputShape,
    SeriesShape,
    TextShape,
    answer_size,
    blank_inputs,
)

__all__ = [
    "DocumentShape",
    "ImageShape",
    "InputShape",
    "SeriesShape",
    "TextShape",
    "blank_inputs",
    "build_model",
    "require_answers",
    "require_side",
    "scaled",
    "takes",
]


def scaled(units: int, width: float) -> int:
    """Units of a hidden layer at this width, at least one."""
    return max(1, round(units * width))


def require_side(image: ImageShape, side: int, model: str) -> None:
    """Refuse images that a model would shrink to nothing.

    Raises
    ------
    ValueError
        Names the smallest side that works.
    """
    if min(image[1:]) < side:
        raise ValueError(
            f"{model} needs images of at least {side}x{side} pixels; these are "
            f"{image[1]}x{image[2]}: take a smaller depth or another model"
        )


def takes(builder: Callable[..., Any]) -> frozenset[type[InputShape]]:
    """Kinds of examples that a builder is for; empty: any, or it does not say."""
    hint = next(iter(hints_of(builder).values()), None)
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return frozenset(kinds) if set(kinds) <= KINDS.keys() else frozenset()


def _require_kind(component: Component, shape: InputShape, where: str) -> None:
    """Refuse a network for examples of another kind, naming those that fit."""
    if type(shape) not in KINDS:
        raise ConfigError(f"the shape of an example is {shape}, none of fedwsa.models.inputs")
    wanted = takes(locate(component.target, f"{where.partition('.')[0]}._target_"))
    if not wanted or type(shape) in wanted:
        return
    fitting = [
        name
        for name, option in options("model").items()
        if type(shape) in takes(locate(option.target, "model._target_"))
    ]
    kinds = " and ".join(text for kind, text in KINDS.items() if kind in wanted)
    raise ConfigError(
        f"{where}: {component.name} is for {kinds}, and the data are {KINDS[type(shape)]}; take "
        f"one of {', '.join(fitting)}"
    )


def build_model(
    component: Component, shape: InputShape, classes: int, seed: int, where: str = "model"
) -> nn.Module:
    """The network that the configuration names, with initial weights keyed by ``seed``.

    ``where`` is the key to blame.

    Raises
    ------
    ConfigError
        If an argument is wrong, or the examples are too small for it or of another kind.
    """
    _require_kind(component, shape, where)
    with seeding.seeded(seed, "model"):
        model = build(component, where, shape, classes)
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError(f"{where}: {component.name} must return a torch.nn.Module, not {kind}")
    with blaming(ConfigError, f"{where}: "):
        values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if lazy := next((name for name, value in values.items() if is_lazy(value)), None):
        raise ConfigError(
            f"{where}: {lazy} has no shape yet (a lazy module, as nn.LazyLinear); name its number "
            f"of inputs, which {component.name} can take from the shape of an example that it gets"
        )
    return model


@torch.no_grad()
def require_answers(
    model: nn.Module, shape: InputShape, classes: int, where: str = "model"
) -> None:
    """Refuse a network that does not answer two examples by a score for each class.

    Raises
    ------
    ConfigError
        If it raises, or answers anything else; ``where`` is the key to blame.
    """
    wanted, blank = answer_size(shape, 2, classes), blank_inputs(shape, 2)
    mode = model.training
    with blaming(ConfigError, f"{where}: it cannot answer inputs {tuple(blank.shape)}: "):
        answer = model.eval()(blank)
    model.train(mode)
    if not isinstance(answer, Tensor):
        kind = type(answer).__name__
        raise ConfigError(f"{where}: it must answer by a tensor of scores, not by a {kind}")
    if tuple(answer.shape) != wanted:
        raise ConfigError(
            f"{where}: it answers two examples by {tuple(answer.shape)}; with {classes} classes "
            f"that must be {wanted}"
        )
