"""A learngene with random templates."""

from __future__ import annotations

import torch
from torch import nn

from fedwsa.learngene import wave
from fedwsa.models.architecture import Outline, architecture_of
from tests.given.architecture import component, network


def random_wave(name: str, count: int = 3, **changes: object) -> nn.Module:
    """A network with templates of unit variance and random scalers."""
    model, known = network(name, **changes), architecture_of(component(name))
    shapes = wave.template_shapes([Outline.of(model, known)], known)
    draw = torch.Generator().manual_seed(0)
    wave.attach(model, known, wave.random_templates(model, known, shapes, count, draw))
    variances = dict.fromkeys(wave.scalers_of(model), 0.01)
    wave.random_scalers(model, variances, draw)
    return model
