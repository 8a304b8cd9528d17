"""The models of a run's sizes, as the server has them: one of each, however many the clients."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from fedwsa.algorithms.objective import trainable
from fedwsa.config.blame import blaming
from fedwsa.config.component import Component, ConfigError
from fedwsa.fleet.size_rules import WHOLE, model_cost
from fedwsa.models import InputShape, build_model, exchange, require_answers, state
from fedwsa.models.architecture import Architecture, Axes, Axis, architecture_of
from fedwsa.models.exits import Exits
from fedwsa.schema.config import Config
from fedwsa.schema.fleet import Fleet

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)


@dataclass(frozen=True, eq=False)
class SizedModels:
    """A network of each size that takes part.

    Attributes
    ----------
    models : dict of str to Module
        With their initial weights.
    of_client : list of str
        The size of each client.
    costs : dict of str to float
        What a forward pass costs a client of a size.
    known : Architecture
        What is known of this kind of network.
    shape : tuple of int
        Of an example.
    components : dict of str to Component
        What builds the network of a size.
    classes, seed : int
        Of the run.
    """

    models: dict[str, nn.Module]
    of_client: list[str]
    costs: dict[str, float]
    known: Architecture
    shape: InputShape
    components: dict[str, Component]
    classes: int
    seed: int

    @classmethod
    def of(cls, config: Config, shape: InputShape, classes: int) -> SizedModels:
        """Build them.

        Raises
        ------
        ConfigError
            If one cannot be, or several are asked of a network that does not say how its
            weights hang together.
        """
        names = config.size_names
        known = _known(config.model, needed=names != [WHOLE])
        models, costs = {}, {}
        for name in names:
            component, where = config.model_of(name), WHOLE if name == WHOLE else f"sizes.{name}"
            models[name] = build_model(component, shape, classes, config.seed, where)
            with blaming(ConfigError, f"{where}: "):  # a stranger's has its own state_dict, perhaps
                state.require_shareable(models[name], where)
                exchange.travelling_state(models[name])
            require_answers(models[name], shape, classes, where)
            _require_repeatable(
                models[name], build_model(component, shape, classes, config.seed, where), where
            )
            several = len(names) > 1
            costs[name] = model_cost(component, shape, classes) if several else 1.0
        of_client = Fleet(config).sizes(shape, classes)
        components = {name: config.model_of(name) for name in names}
        return cls(models, of_client, costs, known, shape, components, classes, config.seed)

    @cached_property
    def marks(self) -> dict[str, str]:
        """Size → marks of what does not travel, which clients compare to their own, as JSON."""
        return {size: json.dumps(state.marks(state.staying(m))) for size, m in self.models.items()}

    @cached_property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Size → name of an array that travels → its shape."""
        return {
            size: {k: tuple(t.shape) for k, t in exchange.travelling_state(model).items()}
            for size, model in self.models.items()
        }

    def described(self, sent: Mapping[str, Mapping[str, tuple[int, ...]]]) -> dict[str, Any]:
        """Who has which size, and of each its model, its parameters, and bytes one way.

        Parameters
        ----------
        sent
            Size → name of an array that its clients are sent → its shape.
        """
        parameters, sizes = {}, {}
        for size, model in self.models.items():
            state = exchange.travelling_state(model)
            parameters[size] = sum(p.numel() for p in model.parameters())
            usual = next(iter(state.values())).element_size()
            sizes[size] = sum(
                math.prod(shape) * (state[name].element_size() if name in state else usual)
                for name, shape in sent[size].items()
            )
        return {
            "models": {s: c.model_dump(by_alias=True) for s, c in self.components.items()},
            "clients": list(self.of_client),
            "parameters": parameters,
            "bytes": sizes,
        }

    @property
    def norms(self) -> list[str]:
        """Names of the arrays that travel of normalisation layers, of all sizes."""
        found: dict[str, None] = {}
        for model in self.models.values():
            travelling = exchange.travelling_state(model)
            for prefix, module in model.named_modules():
                if isinstance(module, NORMS):
                    own = (f"{prefix}.{key}" for key in module.state_dict())
                    found |= dict.fromkeys(name for name in own if name in travelling)
        return list(found)

    @property
    def buffers(self) -> list[str]:
        """Names of the arrays that travel and are not trained."""
        found: dict[str, None] = {}
        for model in self.models.values():
            trained = dict(model.named_parameters())
            found |= dict.fromkeys(k for k in exchange.travelling_state(model) if k not in trained)
        return list(found)

    @property
    def untrained(self) -> list[str]:
        """Names of the arrays that travel and that no client trains: buffers, frozen layers."""
        found: dict[str, None] = {}
        for model in self.models.values():
            trained = trainable(model)
            found |= dict.fromkeys(k for k in exchange.travelling_state(model) if k not in trained)
        return list(found)

    @property
    def classifier(self) -> list[str]:
        """Names of the arrays that have a row for each class."""
        names = {name: None for of in self.shapes.values() for name in of}
        return [name for name in names if name.startswith(self.known.classifier)]

    @property
    def axes(self) -> Axes:
        """How units lie in the arrays, which all sizes must agree on.

        Raises
        ------
        ConfigError
            If attention heads, or flattened images, have other sizes in one than in another.
        """
        found: dict[str, tuple[str, dict[int, Axis]]] = {}
        for size, model in self.models.items():
            for name, axes in self.known.axes(model).items():
                other, agreed = found.setdefault(name, (size, dict(axes)))
                if dict(axes) != agreed:
                    raise ConfigError(
                        f"sizes.{size}: {name} has units of {_units(axes)} entries, in size "
                        f"{other} of {_units(agreed)}: they cannot be shared (for a vit, leave "
                        "model.heads at null)"
                    )
        return {name: agreed for name, (_, agreed) in found.items()}

    @property
    def exits(self) -> Exits:
        """The early exits of the sizes, with what they begin with.

        Raises
        ------
        ConfigError
            If a network can have none.
        """
        if len(self.components) == 1:
            return Exits.none(next(iter(self.components)), self.known.last, self.axes)
        return Exits.of(self.components, self.shape, self.classes, self.seed)

    @property
    def widths_differ(self) -> bool:
        """Whether a layer has another shape in one size than in another."""
        layers = [
            (name, shape)
            for of in self.shapes.values()
            for name, shape in of.items()
            if len(shape) >= 2
        ]
        return len(set(layers)) > len({name for name, _ in layers})


def _require_repeatable(model: nn.Module, again: nn.Module, where: str) -> None:
    """Refuse a builder that makes other tensors each time, of those that do not travel."""
    if name := state.unlike(state.marks(state.staying(model)), state.staying(again)):
        raise ConfigError(
            f"{where}: {name} does not travel, and is another each time it is built: draw it from "
            "torch's, NumPy's or Python's global generator, which are seeded for each"
        )


def _known(model: Component, needed: bool) -> Architecture:
    try:
        return architecture_of(model)
    except ConfigError:
        if needed:
            raise
        return Architecture()  # a stranger's network that is never taken apart


def _units(axes: Mapping[int, Axis]) -> str:
    return " and ".join(str(axis.inner) for axis in axes.values())
