"""Networks in files: a safetensors file that says what network its tensors are of."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedwsa.components import Component, ConfigError
from fedwsa.data.cache import write_tensors
from fedwsa.data.examples import LabelledData
from fedwsa.models import InputShape, build_model, state


def save_network(
    file: Path,
    tensors: Mapping[str, Tensor],
    model: Component,
    data: LabelledData,
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
        "shape": list(data.shape),
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
        raise ConfigError(f"{file} does not say of what network its weights are")
    component = Component.model_validate(facts["model"])
    from fedwsa.config import options  # which imports what imports this module

    known = {option.target for option in options("model").values()}
    if component.target not in known | set(builders):
        raise ConfigError(
            f"{file} is of a network of {component.target}, which is none of ours: it is built "
            "only where you name that builder yourself"
        )
    return component


def built(
    component: Component,
    shape: InputShape,
    classes: int,
    facts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    """The network that a file says it is of, with these tensors.

    Raises
    ------
    ConfigError
        If one is missing or unknown; single whole numbers (BatchNorm's counts) may be missing.
    RuntimeError
        If one has another shape.
    """
    network = build_model(component, shape, classes, int(facts.get("seed", 0)))
    missing, unexpected = network.load_state_dict(dict(tensors), strict=False)
    needed = [name for name in missing if not state.is_count(network.state_dict()[name])]
    if wrong := [*needed, *unexpected]:
        raise ConfigError(f"the weights do not fit their network: {wrong[0]}")
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

    ``builders`` of your own are built too, see :func:`component_of`.

    Raises
    ------
    ConfigError
        If there is no such file, it is damaged, or its tensors are not the network's.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {})["fedwsa"])
            tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
        component = component_of(facts, file, builders)
        shape = tuple(int(size) for size in facts["shape"])
        classes, data = int(facts["classes"]), dict(facts["data"])
        module = built(component, shape, classes, facts, tensors)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {file}") from None
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is no network of ours, or damaged: {reason}") from None
    return SavedNetwork(module, component, shape, classes, data)
