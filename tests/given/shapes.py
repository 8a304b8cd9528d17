"""Shapes of examples that a network is for."""

from __future__ import annotations

from fedwsa.config.component import Component, locate
from fedwsa.models import InputShape, takes

SHAPES = {1: (8,), 2: (2, 32), 3: (3, 32, 32)}


def an_example_for(model: Component) -> InputShape:
    """A text of 8 characters, a series of 32 times, or a picture: the largest that it takes."""
    return SHAPES[max(takes(locate(model.target, "model")))]
