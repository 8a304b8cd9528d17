"""Shapes of examples that a network is for."""

from __future__ import annotations

from fedwsa.config.component import Component, locate
from fedwsa.models import InputShape, takes
from fedwsa.models.inputs import ImageShape, SeriesShape, TextShape

_SHAPES = {
    type(shape): shape for shape in (ImageShape(3, 32, 32), SeriesShape(2, 32), TextShape(8))
}


def an_example_for(model: Component) -> InputShape:
    """A picture, a series of 32 times, or a text of 8 characters: the largest that it takes."""
    kinds = takes(locate(model.target, "model"))
    return next(shape for kind, shape in _SHAPES.items() if kind in kinds)
