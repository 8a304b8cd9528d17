"""Our models in a small size."""

from __future__ import annotations

from torch import nn

from fedwsa.config.component import Component
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape, InputShape, SeriesShape, TextShape

IMAGE, SERIES, TEXT, CLASSES = ImageShape(3, 32, 32), SeriesShape(2, 32), TextShape(12), 7


SMALL = {
    "mlp.mlp": {"width": 0.5, "depth": 3},
    "cnn.cnn": {"width": 0.5, "depth": 2},
    "cnn.cnn_pfl": {"width": 0.5, "depth": 2},
    "cnn.cnn1d": {"width": 0.5, "depth": 2},
    "resnet.resnet": {"width": 0.5, "depth": 14, "norm": "group"},
    "vgg.vgg": {"width": 0.25, "depth": 11, "norm": "none"},
    "vit.vit": {"width": 0.25, "depth": 3, "heads": None, "patch": 8, "mlp_ratio": 4.0},
    "text.char_lstm": {"width": 0.25, "depth": 2},
    "text.char_transformer": {"width": 0.25, "depth": 2, "heads": None, "mlp_ratio": 4.0},
}


def component(name: str, **changes: object) -> Component:
    return Component.of(f"fedwsa.models.{name}", **SMALL[name]).replace(**changes)


def shape(name: str) -> InputShape:
    if name == "cnn.cnn1d":
        return SERIES
    return TEXT if name.startswith("text.") else IMAGE


def network(name: str, **changes: object) -> nn.Module:
    return build_model(component(name, **changes), shape(name), CLASSES, seed=0)
