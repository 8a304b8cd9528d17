"""The methods of merging: what each needs, what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from torch import Tensor

from experiments.merge.data import DataAtHand
from experiments.merge.files import ModelFile
from fedwsa.config.component import Component, ConfigError, build, locate
from fedwsa.config.places import options
from fedwsa.merge import aligned, needs
from fedwsa.merge.fisher_checks import unseen
from fedwsa.merge.states import State, require_alike
from fedwsa.models.architecture import Units, units_of
from fedwsa.models.files import component_of
from fedwsa.models.inputs import shape_from

_MISSING = {
    "base": "--base FILE, the weights that the models began with",
    "fishers": "--evaluate dataset=..., data to compute the Fisher information on",
    "permutations": "files of ours, which say what network they are of",
}


@dataclass(frozen=True)
class Method:
    """A way to merge: how it is called, the operator and its options."""

    name: str
    component: Component

    @property
    def needs(self) -> frozenset[str]:
        """What it needs beside models and weights."""
        return needs(locate(self.component.target, "--method"), "--method")


@dataclass
class Ingredients:
    """What there is to merge with.

    Attributes
    ----------
    models : list of ModelFile
    weights : list of float or None
    base : ModelFile or None
    data : DataAtHand or None
    samples : int
        From which each Fisher information is estimated.
    builders : list of str
        Of networks of one's own, which may be built.
    """

    models: list[ModelFile]
    weights: list[float] | None = None
    base: ModelFile | None = None
    data: DataAtHand | None = None
    samples: int = 1000
    builders: Sequence[str] = ()
    _made: dict[str, Any] = field(default_factory=dict)

    def lacking(self, method: Method) -> str | None:
        """What must be given for a method; None if nothing."""
        if len(self.models) == 1 and "base" not in method.needs:
            return "a second model"
        there = {
            "base": self.base is not None,
            "fishers": self.data is not None,
            "base_fisher": True,  # None where there is no base, or no data
            "permutations": bool(self.models[0].facts),
        }
        return next((_MISSING[need] for need in sorted(method.needs) if not there[need]), None)

    def supply(self, need: str) -> Any:
        """Something that an operator needs, made once."""
        if need not in self._made:
            self._made[need] = getattr(self, f"_make_{need}")()
        return self._made[need]

    def rescaled(self, method: Method) -> list[dict[str, Tensor]]:
        """Each model alone, moved to where a method that rescales moves it; none of others."""
        move = aligned(locate(method.component.target, "--method"))
        if move is None:
            return []
        arguments = method.component.arguments
        return move(self.models, weights=self.weights, **arguments)

    def unseen(self) -> tuple[int, int] | None:
        """How many entries no Fisher information speaks of, of how many; None if it has none."""
        return unseen(self._made["fishers"]) if "fishers" in self._made else None

    def _make_base(self) -> ModelFile | None:
        return self.base

    def _make_fishers(self) -> list[dict[str, Tensor]]:
        assert self.data is not None
        return [self.data.fisher(m, m.facts, self.samples) for m in self.models]

    def _make_base_fisher(self) -> dict[str, Tensor] | None:
        if self.data is None or self.base is None:
            return None
        return self.data.fisher(self.base, self.base.facts or self.models[0].facts, self.samples)

    def _make_permutations(self) -> Units:
        first = self.models[0]
        network = component_of(first.facts, first.file, self.builders)
        return units_of(network, shape_from(first.facts["shape"]), int(first.facts["classes"]))


def merge(method: Method, given: Ingredients) -> dict[str, Tensor]:
    """Merge by a method.

    Raises
    ------
    ConfigError
        If it lacks something, an option is wrong, or the models cannot be merged so.
    """
    if lacks := given.lacking(method):
        raise ConfigError(f"--method {method.name} needs {lacks}")
    supplied = {need: given.supply(need) for need in sorted(method.needs)}
    merged: dict[str, Tensor] = build(
        method.component, "--option", given.models, supplied={"weights": given.weights, **supplied}
    )
    _require_model(merged, given.models[0], method)
    return merged


def _require_model(merged: Any, first: State, method: Method) -> None:
    """Refuse what is no model such as the first; operators of one's own may return anything."""
    named = isinstance(merged, Mapping) and all(isinstance(t, Tensor) for t in merged.values())
    if not named:
        raise ConfigError(f"--method {method.name}: it must return a dict of tensors by name")
    try:
        require_alike([first, merged])
    except ValueError as error:
        line = str(error).replace("model 2", "the merged model").replace("model 1", "the first")
        raise ConfigError(f"--method {method.name}: {line}") from None


def method_of(name: str, words: Sequence[str] = ()) -> Method:
    """A method of ``conf/merge``, or by its dotted path, with options ``KEY=VALUE``.

    Raises
    ------
    ConfigError
        If there is none of that name, or a word is no option.
    """
    known = options("merge")
    if name in known:
        component = known[name]
    elif "." in name:
        component = Component.of(name)
    else:
        raise ConfigError(f"--method {name}: there are {', '.join(known)}, all, or PATH.TO.YOURS")
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--option {word}: must be KEY=VALUE")
        try:
            arguments[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--option {word}: cannot be read") from None
    return Method(name, component.replace(**arguments))
