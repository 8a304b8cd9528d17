"""The network that a client trains, under the names of the message that brought its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from fedwsa import messages
from fedwsa.components import Component
from fedwsa.learngene import wave
from fedwsa.models import InputShape, build_model
from fedwsa.models.architecture import architecture_of
from fedwsa.objectives import Weights


@dataclass(frozen=True, eq=False)
class Network:
    """A network, kept by a process for all clients of a size.

    Attributes
    ----------
    model : Module
        Plain, or with weights made from templates.
    keys : mapping
        Name of a tensor that travels → the keys of the state dict that hold it.
    rest : mapping
        What does not travel, as it begins.
    """

    model: nn.Module
    keys: Mapping[str, list[str]]
    rest: Mapping[str, Tensor]

    @property
    def templated(self) -> bool:
        """Whether its weights are made from templates."""
        return any(name.startswith(wave.TEMPLATES) for name in self.keys)

    def state(self) -> dict[str, Tensor]:
        """The tensors that travel."""
        held = self.model.state_dict()
        return {name: held[keys[0]] for name, keys in self.keys.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the tensors the network's own.

        Raises
        ------
        ValueError
            If names or shapes are not the network's.
        """
        if problem := messages.mismatch(tensors, self.state()):
            raise ValueError(f"the arrays do not fit the model: {problem}")
        held = {k: t.clone() for k, t in self.rest.items()}
        for name, keys in self.keys.items():
            # One Parameter under all its keys: the layers of a group go on sharing templates.
            tensor = nn.Parameter(tensors[name]) if len(keys) > 1 else tensors[name]
            held |= dict.fromkeys(keys, tensor)
        self.model.load_state_dict(held, assign=True)

    def weights(self) -> Weights:
        """What objectives work on: the model, or its tensors where names are others there."""
        if not self.templated:
            return self.model
        held = self.model.state_dict(keep_vars=True)
        named = {name: held[keys[0]] for name, keys in self.keys.items()}
        return {name: t for name, t in named.items() if t.requires_grad}


def network_for(
    component: Component,
    shape: InputShape,
    classes: int,
    device: str,
    tensors: Mapping[str, Tensor],
) -> Network:
    """The network for weights that were received; with templates if there are any among them."""
    shapes = tuple((k, tuple(t.shape)) for k, t in tensors.items() if k.startswith(wave.TEMPLATES))
    return _network(component.model_dump_json(by_alias=True), shape, classes, device, shapes)


@lru_cache(maxsize=8)  # a few sizes
def _network(
    described: str,
    shape: InputShape,
    classes: int,
    device: str,
    templates: tuple[tuple[str, tuple[int, ...]], ...],
) -> Network:
    component = Component.model_validate_json(described)
    model = build_model(component, shape, classes, seed=0)
    keys = {name: [name] for name in messages.travelling_state(model)}
    if templates:
        known = architecture_of(component)
        given = {k.removeprefix(wave.TEMPLATES): torch.zeros(shape) for k, shape in templates}
        wave.attach(model, known, given)
        keys = wave.keys(model, known)
    model.to(device)
    held = model.state_dict()
    keys = {name: k for name, k in keys.items() if held[k[0]].is_floating_point()}
    travelling = {k for own in keys.values() for k in own}
    return Network(model, keys, {k: t for k, t in held.items() if k not in travelling})
