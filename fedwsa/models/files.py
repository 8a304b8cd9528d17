"""Networks in files: a safetensors file that says what network its tensors are of."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from safetensors import SafetensorError
from torch import Tensor, nn

from fedwsa.config.component import Component, ConfigError
from fedwsa.config.places import options
from fedwsa.models import InputShape, build_model, state
from fedwsa.models.inputs import described_shape, shape_from
from fedwsa.models.weights import open_weights, plain_names
from fedwsa.runfolder.tensors import write_tensors


class DataFacts(Protocol):
    """What must be known of the data that a network is for."""

    kind: ClassVar[str]

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def shape(self) -> InputShape:
        """Shape of an example."""

    def facts(self) -> dict[str, Any]:
        """How examples are prepared, as plain values."""


def save_network(
    file: Path,
    tensors: Mapping[str, Tensor],
    model: Component,
    data: DataFacts,
    seed: int = 0,
) -> None:
    """Write a network's state, whole or not at all, with what its user must know of the data.

    Parameters
    ----------
    tensors
        Its state dict, under all names of those that are tied.
    seed
        By which it was built: what its state dict lacks is built again.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    facts = {
        "model": model.model_dump(by_alias=True),
        "shape": described_shape(data.shape),
        "classes": data.classes,
        "seed": seed,
        "data": {"kind": data.kind, **data.facts()},
    }
    apart = {k: t.detach().cpu().clone() for k, t in tensors.items()}  # the format has no ties
    write_tensors(file, apart, {"fedwsa": json.dumps(facts)}, "out")


def component_of(facts: Mapping[str, Any], file: Path, builders: Collection[str] = ()) -> Component:
    """What builds the network of a file, from what the file says of it.

    A file must not say what is imported and run: it may name the builders of ``conf/model``, and
    those that its reader allows.

    Parameters
    ----------
    builders
        Dotted paths of others.

    Raises
    ------
    ConfigError
        If it does not say, or names another builder.
    """
    if "model" not in facts:
        raise ConfigError(
            f"{file} does not say of what network its weights are, as model.safetensors of a run "
            "and fedwsa.models.files.save_network do"
        )
    component = Component.model_validate(facts["model"])
    known = {option.target for option in options("model").values()}
    if component.target not in known | set(builders):
        raise ConfigError(
            f"{file} is of a network of {component.target}, which is none of ours: it is built "
            "only where you name that builder yourself"
        )
    return component


def built(
    component: Component, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str
) -> nn.Module:
    """The network that the facts of a file are of, with tensors that come from ``what``.

    Names may be those of a wrapper, where they are not the network's own.

    Raises
    ------
    ConfigError
        If one is missing or unknown; single whole numbers (BatchNorm's counts) may be missing.
    RuntimeError
        If one has another shape.
    """
    shape, seed = shape_from(facts["shape"]), int(facts.get("seed", 0))
    network = build_model(component, shape, int(facts["classes"]), seed)
    if not network.state_dict().keys() & tensors.keys():
        tensors = {name: tensors[stored] for name, stored in plain_names(tensors, what).items()}
    missing, unexpected = network.load_state_dict(dict(tensors), strict=False)
    needed = [name for name in missing if not state.is_count(network.state_dict()[name])]
    if wrong := [*needed, *unexpected]:
        raise ConfigError(f"{what} does not fit its network: {wrong[0]}")
    return network


@dataclass(frozen=True, eq=False)
class SavedNetwork:
    """A network from a file, what builds it, what it looks at and tells apart.

    ``data`` is what it was trained on: the kind of examples, and how they are prepared.
    """

    module: nn.Module
    model: Component
    shape: InputShape
    classes: int
    data: dict[str, Any]


def load_network(file: Path, builders: Collection[str] = ()) -> SavedNetwork:
    """The network of a file.

    ``builders`` of your own are built too, see :func:`component_of`. The file may be an index of
    several, and its names those of a wrapper, see :func:`fedwsa.models.weights.open_weights`.

    Raises
    ------
    ConfigError
        If there is no such file, it is damaged, or its tensors are not the network's.
    """
    try:
        opened = open_weights(file)
        facts, tensors = json.loads(opened.metadata["fedwsa"]), opened.tensors()
        component = component_of(facts, file, builders)
        shape = shape_from(facts["shape"])
        classes, data = int(facts["classes"]), dict(facts["data"])
        module = built(component, facts, tensors, str(file))
    except ConfigError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is no network of ours, or damaged: {reason}") from None
    return SavedNetwork(module, component, shape, classes, data)
