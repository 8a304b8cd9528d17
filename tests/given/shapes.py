"""Shapes of examples that a network is for."""

from __future__ import annotations

from fedwsa.config.component import Component, locate
from fedwsa.config.places import options
from fedwsa.models import InputShape, takes
from fedwsa.models.inputs import DocumentShape, ImageShape, SeriesShape, TextShape

DOCUMENT = DocumentShape(8, 50)
_SHAPES = {
    type(shape): shape
    for shape in (ImageShape(3, 32, 32), SeriesShape(2, 32), TextShape(8), DOCUMENT)
}


def an_example_for(model: Component) -> InputShape:
    """A picture, a series of 32 times, or a text of 8 characters: the largest that it takes."""
    kinds = takes(locate(model.target, "model"))
    return next(shape for kind, shape in _SHAPES.items() if kind in kinds)


def small_option(name: str) -> Component:
    """A model of ours in a small size."""
    component = options("model")[name]
    if "settings" in component.arguments:
        return component.replace(
            settings={"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 1}
        )
    return component.replace(width=0.25) if "width" in component.arguments else component
