"""The network that a client trains, under the names of the message that brought its weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clients.stacking import Stacking, stacking
from fedwsa.algorithms.objective import Weights
from fedwsa.config.component import Component, ConfigError
from fedwsa.learngene import wave
from fedwsa.models import InputShape, build_model, exchange, state
from fedwsa.models.architecture import architecture_of
from fedwsa.remembered import in_run
from fedwsa.scope.moments import precise
from fedwsa.wire.content import Content, find_record
from fedwsa.wire.names import STAYING


@dataclass(frozen=True, eq=False)
class Network:
    """A network, kept by a process for all clients of a size.

    What is loaded goes into the tensors that the network has: those that are tied, or that it
    holds in a place of its own beside its parameters, stay one.

    Attributes
    ----------
    model : Module
        Plain, or with weights made from templates.
    keys : mapping
        Name of a tensor that travels → its name in the model.
    rest : mapping
        What does not travel, as it begins: statistics of static norms are not measured yet.
    shape : tuple of int
        Of an example.
    classes : int
    component : Component
        What has built it.
    """

    model: nn.Module
    keys: Mapping[str, str]
    rest: Mapping[str, Tensor]
    shape: InputShape
    classes: int
    component: Component
    _tried: dict[int, Stacking] = field(default_factory=dict)

    @property
    def templated(self) -> bool:
        """Whether its weights are made from templates."""
        return any(name.startswith(wave.TEMPLATES) for name in self.keys)

    def stacking(self, batch: int) -> Stacking:
        """How clients that train it in batches of this size may do so at once; tried once."""
        if batch not in self._tried:
            self._tried[batch] = stacking(self.model, self.shape, self.classes, batch)
        return self._tried[batch]

    def _own(self) -> dict[str, Tensor]:
        """The network's tensors that travel."""
        held = _tensors(self.model)
        return {name: held[key] for name, key in self.keys.items()}

    def state(self) -> dict[str, Tensor]:
        """The tensors that travel, half precision as single; the next client's are others."""
        sharing = _sharing(self.model)
        return {
            name: precise(own.detach().clone() if _storage(own) in sharing else own.detach())
            for name, own in self._own().items()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the network the values of tensors, and what does not travel as it began.

        Raises
        ------
        ValueError
            If names or shapes are not the network's.
        """
        own = self._own()
        if problem := exchange.mismatch(tensors, own):
            raise ValueError(f"the arrays do not fit the model: {problem}")
        sharing = _sharing(self.model)
        for name, tensor in tensors.items():
            _fill(own[name], tensor, _storage(own[name]) in sharing)
        held = _tensors(self.model)
        for name, tensor in self.rest.items():
            if held[name].shape == tensor.shape:
                _fill(held[name], tensor, _storage(held[name]) in sharing)
            else:  # which a client before made anew
                module, _, leaf = name.rpartition(".")
                self.model.get_submodule(module).register_buffer(leaf, tensor.clone())
        self.model.zero_grad(set_to_none=True)

    def require_built_alike(self, content: Content) -> None:
        """Refuse to train a network whose tensors that do not travel are not the server's.

        Raises
        ------
        ConfigError
            Names the first.
        """
        told = find_record(content, STAYING)
        if told is None:
            return
        own = state.measured(self.model)
        alike = {name: tensor for name, tensor in self.rest.items() if name not in own}
        if name := state.unlike(json.loads(str(told[STAYING])), alike):
            raise ConfigError(
                f"model: {name}, which does not travel, is not as the server has built it: the "
                "builder must draw from torch's, NumPy's or Python's global generator alone, and "
                "all machines need the same versions"
            )

    def weights(self) -> Weights:
        """What objectives work on: the model, or its tensors where names are others there."""
        if not self.templated:
            return self.model
        return {name: t for name, t in self._own().items() if t.requires_grad}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by all their names."""
    parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _sharing(model: nn.Module) -> set[int]:
    """Memory that several tensors of a model look at: one is a part of the other."""
    apart = {id(tensor): tensor for tensor in _tensors(model).values()}
    counts = Counter(_storage(t) for t in apart.values() if t.numel())
    return {place for place, count in counts.items() if count > 1}


def _fill(own: Tensor, tensor: Tensor, shared: bool) -> None:
    """Give a tensor other values; in new memory, which a reply may hold, unless that is shared."""
    if shared:
        own.copy_(tensor)
    else:
        own.data = torch.empty_like(own, requires_grad=False).copy_(tensor)


def network_for(
    component: Component,
    shape: InputShape,
    classes: int,
    device: str,
    tensors: Mapping[str, Tensor],
    seed: int,
    layout: torch.memory_format = torch.contiguous_format,
) -> Network:
    """The network for weights that were received; with templates if there are any among them.

    ``seed`` is the run's: what does not travel is built as at the server. ``layout`` is that of
    tensors with four dimensions.
    """
    templates = tuple(
        (k, tuple(t.shape), t.dtype) for k, t in tensors.items() if k.startswith(wave.TEMPLATES)
    )
    return _network(component, shape, classes, device, templates, seed, layout)


@in_run(8)  # a few sizes
def _network(
    component: Component,
    shape: InputShape,
    classes: int,
    device: str,
    templates: tuple[tuple[str, tuple[int, ...], torch.dtype], ...],
    seed: int,
    layout: torch.memory_format,
) -> Network:
    model = build_model(component, shape, classes, seed)
    keys = {name: name for name in state.travelling(model)}
    rest = [*state.staying(model), *state.measured(model)]
    if templates:
        known = architecture_of(component)
        given = {
            key.removeprefix(wave.TEMPLATES): torch.zeros(size, dtype=dtype)
            for key, size, dtype in templates
        }
        wave.attach(model, known, given)
        keys = {name: same[0] for name, same in wave.keys(model, known).items()}
        keys = {name: key for name, key in keys.items() if key not in rest}
    model.to(device)
    if layout is torch.channels_last:
        model.to(memory_format=layout)  # type: ignore[call-overload]  # which torch's types lack
    held = _tensors(model)
    begun = {k: held[k].detach().clone() for k in rest}
    return Network(model, keys, begun, shape, classes, component)
