"""What is known of a kind of network beyond how to build it: how its weights hang together.

Initialisers and federations of several sizes need to know which entries of a tensor are one
unit, which weights share templates, and which blocks are exchangeable. Each builder in this
package says so by :func:`described`, in a table beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedwsa.config.component import Component, ConfigError, locate
from fedwsa.models import InputShape, build_model


@dataclass(frozen=True)
class Axis:
    """How the entries along a dimension of a tensor belong to units.

    Entry ``part·(size/parts) + unit·inner + i`` is entry i of a unit.

    Attributes
    ----------
    parts : int
        Equal parts that lie one after the other, each with all units: 3 for q, k and v.
    inner : int
        Entries of a unit: those of an attention head, the pixels of a flattened channel.
    """

    parts: int = 1
    inner: int = 1

    def units(self, size: int) -> int:
        """How many units there are along a dimension of ``size`` entries.

        Raises
        ------
        ValueError
            If it does not hold whole units.
        """
        units, rest = divmod(size, self.parts * self.inner)
        if rest:
            raise ValueError(
                f"{size} entries are no {self.parts} parts of whole units of {self.inner}"
            )
        return units


Axes = Mapping[str, Mapping[int, Axis]]
"""Name of a tensor → dimension → axis, where it is not ``Axis()``."""

Pick = Callable[[int, int], Tensor]
"""(units there are, units wanted) → which units to take, an index tensor."""


@dataclass(frozen=True)
class Units:
    """Which units of a network may change places without changing its function.

    Units of a group change places together, in all tensors that have them. Classes, pixels and
    image channels are in no group.

    Attributes
    ----------
    groups : mapping of str to mapping of int to str
        Name of a tensor → dimension → group of the units along it.
    axes : Axes
        How entries belong to units, where it is not ``Axis()``.
    blocks : mapping of str to int
        Group → number of equal blocks of neighbours, where there are any: a GroupNorm keeps its
        function only if units that share a block still do so afterwards.
    """

    groups: Mapping[str, Mapping[int, str]]
    axes: Axes = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dimensions in self.groups.items():
            if len(set(dimensions.values())) < len(dimensions):
                raise ValueError(f"{name}: two dimensions are of the same group of units")

    def axis(self, name: str, dimension: int) -> Axis:
        """How entries along a dimension belong to units."""
        return self.axes.get(name, {}).get(dimension, Axis())

    def names(self) -> list[str]:
        """The groups, in the order of the tensors."""
        return list(dict.fromkeys(g for found in self.groups.values() for g in found.values()))

    def members(self, group: str) -> list[tuple[str, int]]:
        """Tensors and dimensions that have the units of a group."""
        return [(n, d) for n, found in self.groups.items() for d, g in found.items() if g == group]


def _plain(model: nn.Module) -> Axes:
    return {}


@dataclass(frozen=True)
class Architecture:
    """What is known of a kind of network.

    Attributes
    ----------
    groups : mapping of str to str
        Weight group → regular expression of the weight tensors that share its templates.
    blocks : str or None
        Regular expression whose last group is the number of a block that may stand for another
        one of the same sequence; what is matched before the number names the sequence.
    axes : callable
        Model → its unusual axes.
    head : str
        Regular expression, matched at the beginning of names, of what stands behind the last
        block, which networks of different depths do not share.
    behind : str or None
        The same of all that stands behind the last block, where that is more than the head.
    classifier : str
        How the names of the tensors begin that have a row for each class.
    units : callable or None
        Model → which of its units may change places (:mod:`fedwsa.models.units`); None: unknown.
    """

    groups: Mapping[str, str] = field(default_factory=dict)
    blocks: str | None = None
    axes: Callable[[nn.Module], Axes] = _plain
    head: str = r"head\."
    behind: str | None = None
    classifier: str = "head."
    units: Callable[[nn.Module], Units] | None = None

    @property
    def last(self) -> str:
        """A regular expression of what stands behind the last block."""
        return self.head if self.behind is None else self.behind

    def group(self, name: str) -> str | None:
        """The weight group of a tensor; None if it has none."""
        return next((g for g, pattern in self.groups.items() if re.search(pattern, name)), None)

    def block(self, name: str) -> tuple[str, int, str] | None:
        """Sequence, number and rest of the name of a tensor in a block; None if it is in none."""
        found = re.match(self.blocks, name) if self.blocks else None
        if found is None:
            return None
        start, end = found.span(found.lastindex or 0)
        return name[:start], int(name[start:end]), name[end:]


@dataclass(frozen=True)
class Outline:
    """Names and shapes of a network's tensors, and its unusual axes.

    Attributes
    ----------
    shapes : mapping of str to torch.Size
        In the order of its state dict.
    axes : Axes
    """

    shapes: Mapping[str, torch.Size]
    axes: Axes

    @classmethod
    def of(cls, model: nn.Module, architecture: Architecture) -> Outline:
        """Of a network, which may be on the meta device."""
        return cls({k: t.shape for k, t in model.state_dict().items()}, architecture.axes(model))


def outline(component: Component, shape: InputShape, classes: int, where: str = "model") -> Outline:
    """The outline of the network that a component builds, without its weights.

    ``where`` names the key of the configuration that an error is to blame.

    Raises
    ------
    ConfigError
        If it cannot be built, or does not say how its weights hang together.
    """
    known = architecture_of(component)
    with torch.device("meta"):
        return Outline.of(build_model(component, shape, classes, 0, where), known)


def units_of(component: Component, shape: InputShape, classes: int, where: str = "model") -> Units:
    """Which units of the network that a component builds may change places.

    Raises
    ------
    ConfigError
        If it cannot be built, or does not say.
    """
    known = architecture_of(component)
    if known.units is None:
        raise ConfigError(f"{where}: {component.name} does not say which units may change places")
    with torch.device("meta"):
        return known.units(build_model(component, shape, classes, 0, where))


_Builder = TypeVar("_Builder", bound=Callable[..., nn.Module])


Described = Architecture | Callable[[Mapping[str, object]], Architecture | None]
"""What is known of a kind of network, or of what a builder makes with some arguments."""


def described(architecture: Described) -> Callable[[_Builder], _Builder]:
    """Attach what is known of a kind of network to the function that builds it."""

    def attach(builder: _Builder) -> _Builder:
        builder.architecture = architecture  # type: ignore[attr-defined]
        return builder

    return attach


def architecture_of(component: Component) -> Architecture:
    """What is known of the network that a component builds.

    Raises
    ------
    ConfigError
        If its builder does not say.
    """
    found = getattr(locate(component.target, "model._target_"), "architecture", None)
    if callable(found):
        found = found(component.arguments)
        if found is None:
            raise ConfigError(
                f"model: nothing says how the weights of {component.name} hang together: it has "
                "one size"
            )
    if not isinstance(found, Architecture):
        raise ConfigError(
            f"model._target_: {component.target} does not say how its weights hang together; "
            "decorate it with fedwsa.models.architecture.described"
        )
    return found


def first_units(there: int, wanted: int) -> Tensor:
    """Choose the first units of each layer."""
    return torch.arange(wanted)


def rolled_by(shift: int) -> Pick:
    """The units of a window that begins at ``shift`` and wraps around."""
    return lambda there, wanted: (torch.arange(wanted) + shift) % there


def spread_units(there: int, wanted: int) -> Tensor:
    """Choose units in even distances over each layer."""
    return torch.arange(wanted) * there // wanted


def repeated_units(there: int, wanted: int) -> Tensor:
    """The first units, and from the first again where more are wanted than there are."""
    return torch.arange(wanted) % there


def entries(axis: Axis, there: int, wanted: int, pick: Pick) -> Tensor | None:
    """Which entries of a dimension to take; None for all.

    A dimension that is wanted whole is taken as it is, so that image channels and classes keep
    their order.

    Raises
    ------
    ValueError
        If either size does not hold whole units.
    """
    if there == wanted:
        return None
    units = pick(axis.units(there), axis.units(wanted))
    parts = torch.arange(axis.parts) * (there // axis.parts)
    inner = torch.arange(axis.inner)
    return (parts[:, None, None] + units[:, None] * axis.inner + inner).flatten()


def selection(
    shape: Sequence[int], wanted: Sequence[int], axes: Mapping[int, Axis], pick: Pick
) -> list[Tensor | None]:
    """Which entries to take along each dimension of a tensor, None for all of a dimension.

    Raises
    ------
    ValueError
        If the shapes have not as many dimensions, or a size does not hold whole units.
    """
    if len(shape) != len(wanted):
        raise ValueError(f"{tuple(shape)} has not as many dimensions as {tuple(wanted)}")
    return [
        entries(axes.get(d, Axis()), there, size, pick)
        for d, (there, size) in enumerate(zip(shape, wanted, strict=True))
    ]


def take(tensor: Tensor, chosen: Sequence[Tensor | None]) -> Tensor:
    """The chosen entries, in memory of their own."""
    for dimension, index in enumerate(chosen):
        if index is not None:
            tensor = tensor.index_select(dimension, index.to(tensor.device))
    return tensor if any(index is not None for index in chosen) else tensor.clone()


def place(chosen: Sequence[Tensor | None], shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The index under which ``tensor[index]`` is what :func:`take` takes, also to assign to."""
    ranges = [
        torch.arange(size) if index is None else index
        for index, size in zip(chosen, shape, strict=True)
    ]
    return torch.meshgrid(*ranges, indexing="ij") if ranges else ()


Window = tuple[slice | Tensor, ...] | None
"""Where the entries of a part lie in the whole; None: it has all of them."""


def window(chosen: Sequence[Tensor | None], shape: Sequence[int]) -> Window:
    """Where :func:`selection` has chosen its entries."""
    if all(index is None for index in chosen):
        return None
    slices = []  # several times as fast as index tensors
    for index in chosen:
        first, size = (0, 0) if index is None else (int(index[0]), len(index))
        if index is not None and not torch.equal(index, torch.arange(first, first + size)):
            return place(chosen, shape)
        slices.append(slice(None) if index is None else slice(first, first + size))
    return tuple(slices)
