"""Networks with early exits: a classifier behind the blocks of each smaller depth."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from fedwsa.config.component import Component, ConfigError, build
from fedwsa.models import InputShape, build_model
from fedwsa.models.architecture import Axes, architecture_of

EXITS = "exits"
"""Where a network has its exits: ``exits.0.head.weight`` is of the one that comes first."""


class WithExits(nn.Module):
    """A network that has the classifiers of less deep ones, which share its blocks.

    Its own tensors keep their names, and it answers as it does without exits.

    Parameters
    ----------
    whole
        The network.
    ways
        Less deep networks of the same kind; from now on their layers are those of ``whole``.
    behind
        A regular expression, matched at the beginning of names: what stands behind the last block.

    Raises
    ------
    ValueError
        If a tensor of a way, in front of its exit, is no tensor of the whole.
    """

    def __init__(self, whole: nn.Module, ways: Sequence[nn.Module], behind: str) -> None:
        super().__init__()
        # The whole's own: what is put in their place, as by loading, is in its place there too.
        self.__dict__["_parameters"] = whole._parameters
        self.__dict__["_buffers"] = whole._buffers
        self.__dict__["_non_persistent_buffers_set"] = whole._non_persistent_buffers_set
        self.__dict__["_modules"] = dict(whole._modules)
        # Not registered: their blocks are the whole's, and have no other names.
        self.networks: list[nn.Module]
        self.__dict__["networks"] = [*ways, whole]
        self.add_module(EXITS, nn.ModuleList(_exit(way, behind) for way in ways))
        for way in ways:
            _share(way, whole, behind)

    @property
    def ways(self) -> list[nn.Module]:
        """The less deep networks, as they were given."""
        return self.networks[:-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """The answer at the end."""
        answer: Tensor = self.networks[-1](inputs)
        return answer

    def early(self, inputs: Tensor) -> list[Tensor]:
        """The answers of the exits, from the first on."""
        return [way.train(self.training)(inputs) for way in self.ways]

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> WithExits:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for way in self.ways:  # which may hold buffers of their own
            way._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _share(way: nn.Module, whole: nn.Module, behind: str) -> None:
    """Let a network have the layers of another one, up to its exit.

    Raises
    ------
    ValueError
        If it has a tensor there that the other has not.
    """
    theirs = dict(whole.named_parameters())
    for name, own in way.named_parameters():
        if not re.match(behind, name) and (name not in theirs or theirs[name].shape != own.shape):
            raise ValueError(f"{name} is another where the network is less deep")
    for path, module in list(way.named_modules()):
        if re.match(behind, f"{path}."):
            continue
        if path and not list(module.children()) and list(module.parameters()):
            parent, _, leaf = path.rpartition(".")
            setattr(way.get_submodule(parent), leaf, whole.get_submodule(path))
            continue
        for leaf, _ in list(module.named_parameters(recurse=False)):
            setattr(module, leaf, theirs[f"{path}.{leaf}".lstrip(".")])


def _exit(way: nn.Module, behind: str) -> nn.Module:
    """What stands behind the last block of a network."""
    own = nn.Module()
    for name, module in way.named_children():
        if re.match(behind, f"{name}."):
            own.add_module(name, module)
    return own


def with_exits(
    shape: InputShape, classes: int, *, model: dict[str, Any], depths: list[PositiveInt]
) -> nn.Module:
    """The network of a component, with an exit at each of the depths."""
    own = Component.model_validate(model)
    whole = build(own, "model", shape, classes)
    ways = [build(own.replace(depth=depth), "model", shape, classes) for depth in depths]
    return WithExits(whole, ways, architecture_of(own).last)


def exited(component: Component, depths: Sequence[int]) -> Component:
    """What builds the network of a component with an exit at each of the depths."""
    if not depths:
        return component
    target = f"{with_exits.__module__}.{with_exits.__qualname__}"
    model = component.model_dump(by_alias=True)
    return Component.of(target, model=model, depths=list(depths))


@dataclass(frozen=True, eq=False)
class Exits:
    """The exits of the networks of several sizes: one at each depth that some size has.

    Attributes
    ----------
    depths : mapping of str to int
        Of each size.
    behind : str
        A regular expression, matched at the beginning of names: what stands behind the last block.
    arrays : mapping of str to mapping of str to Tensor
        Size → name of a tensor of its exits, without its own classifier → what it begins with.
    axes : mapping of str to Axes
        Size → how units lie in its tensors, those of its exits too.
    """

    depths: Mapping[str, int]
    behind: str
    arrays: Mapping[str, Mapping[str, Tensor]]
    axes: Mapping[str, Axes]

    def on_the_way(self, size: str) -> list[int]:
        """The depths at which a size has an exit before its own classifier."""
        return sorted({depth for depth in self.depths.values() if depth < self.depths[size]})

    @classmethod
    def none(cls, size: str, behind: str, axes: Axes) -> Exits:
        """Of one size, which has no exits; it need not be known how deep it is."""
        return cls({size: 1}, behind, {size: {}}, {size: axes})

    @classmethod
    def of(
        cls, components: Mapping[str, Component], shape: InputShape, classes: int, seed: int
    ) -> Exits:
        """Of the networks that the components of several sizes build.

        Raises
        ------
        ConfigError
            If a size has no depth, none could be less deep, or a layer in front of an exit is
            another where the network is less deep.
        """
        depths = {}
        for size, component in components.items():
            depth = component.arguments.get("depth")
            if not isinstance(depth, int):
                raise ConfigError(
                    f"sizes.{size}: early exits need the depth of each size, and "
                    f"{component.name} has none"
                )
            depths[size] = depth
        deepest = components[max(depths, key=lambda size: depths[size])]
        _require_blocks(deepest, shape, classes)
        known = architecture_of(deepest)
        exits = cls(depths, known.last, {}, {})
        arrays: dict[str, dict[str, Tensor]] = {}
        axes: dict[str, Axes] = {}
        for size, component in components.items():
            made = exited(component, exits.on_the_way(size))
            try:
                model = build_model(made, shape, classes, seed, f"sizes.{size}")
            except ConfigError as error:
                raise ConfigError(f"sizes.{size}: no early exits: {error}") from None
            ways = model.ways if isinstance(model, WithExits) else []
            whole = model.networks[-1] if isinstance(model, WithExits) else model
            state = model.state_dict()
            arrays[size] = {n: t for n, t in state.items() if n.startswith(f"{EXITS}.")}
            of_size = dict(known.axes(whole))
            for k, way in enumerate(ways):
                for name, axis in known.axes(way).items():
                    of_size[f"{EXITS}.{k}.{name}"] = axis
            axes[size] = of_size
        return cls(depths, exits.behind, arrays, axes)


def _require_blocks(component: Component, shape: InputShape, classes: int) -> None:
    """Refuse a network of which there is none that is less deep.

    Raises
    ------
    ConfigError
        Names the network.
    """
    depth = component.arguments["depth"]
    for less in range(depth - 1, 0, -1):
        try:
            with torch.device("meta"):
                build_model(component.replace(depth=less), shape, classes, 0)
        except ConfigError:
            continue
        return
    raise ConfigError(
        f"model: {component.name} of depth={depth} has one block, and early exits need a network "
        "that could be less deep; give it a greater depth"
    )
