"""Exchangeable parts named in the configuration by a dotted path, checked before they are made.

A model, a partition, a data source or a strategy is a Python callable; its signature is its
schema. So adding one takes a file with the callable and a yaml with its path and its defaults.
"""

from __future__ import annotations

import copy
import inspect
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PydanticSchemaGenerationError, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.errors import PydanticUserError

from fedwsa.config.blame import blaming, told


class ConfigError(ValueError):
    """Something in the configuration is wrong; the message is one line, fit for a person."""


class Component(BaseModel):
    """A dotted path, and the arguments that stand beside it in the yaml.

    Two of one path and equal arguments are equal, so that caches can be keyed by them. 1, 1.0 and
    True are different arguments: who takes them may tell them apart.

    Examples
    --------
    >>> mlp = Component.of("fedwsa.models.mlp.mlp", width=1.0, depth=2)
    >>> mlp.replace(width=0.5).arguments
    {'width': 0.5, 'depth': 2}
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    target: str = Field(alias="_target_")

    @classmethod
    def of(cls, target: str, /, **arguments: Any) -> Self:
        """The component of a path with arguments."""
        return cls.model_validate({"_target_": target, **arguments})

    def replace(self, /, **arguments: Any) -> Self:
        """The same with some arguments replaced, or added."""
        return self.model_validate({**self.model_dump(by_alias=True), **arguments})

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Component)
            and super().__eq__(other)
            and _hashable(self.model_extra) == _hashable(other.model_extra)
        )

    def __hash__(self) -> int:
        return hash((self.target, _hashable(self.model_extra)))

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys but ``_target_``; a copy, which whoever is called with it may change."""
        return copy.deepcopy(self.model_extra or {})

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.target.rpartition(".")[2]


def _hashable(value: Any) -> Any:
    """Equal for equal values of equal types; the order of keys does not count."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return type(value).__name__, value


class Section(BaseModel):
    """A section of a schema: unknown keys and other types are refused; frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def locate(target: str, key: str) -> Callable[..., Any]:
    """Import the callable at a dotted path.

    Raises
    ------
    ConfigError
        If there is none; ``key`` is the one to blame.
    """
    module, _, name = target.rpartition(".")
    found = None
    with blaming(ConfigError, f"{key}: importing {module} failed: "):
        try:
            there = import_module(module) if module else None
        except ImportError as error:
            line = f"{key}: cannot import {target}: {told(error, kind=False)}"
            raise ConfigError(line) from None
        if there is not None and not hasattr(there, name):
            raise ConfigError(f"{key}: {module} has no {name}{_hidden(module)}")
        found = getattr(there, name, None)
    if not callable(found):
        raise ConfigError(f"{key}: {target} is not a dotted path to a class or function")
    return typing.cast(Callable[..., Any], found)


def _hidden(module: str) -> str:
    """A hint where a file of the working directory has the name of another module."""
    first = module.partition(".")[0]
    mine = next((f for f in (Path(f"{first}.py"), Path(first)) if f.exists()), None)
    taken = getattr(sys.modules.get(first), "__file__", None)
    if mine is None or taken is None or Path(taken).is_relative_to(Path.cwd()):
        return ""
    return f" (it is {taken}; your {mine} needs another name)"


def check_arguments(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    where: str,
    given: int = 0,
    supplied: Collection[str] = (),
) -> dict[str, Any]:
    """Check arguments against a signature: names, presence, and annotated types and ranges.

    Parameters
    ----------
    function
        Its annotations may be narrowed as pydantic understands it (``PositiveInt``, …).
    arguments
        By name.
    where
        The group of the configuration, for messages.
    given
        How many leading parameters the caller supplies.
    supplied
        Names of further parameters that the caller supplies.

    Returns
    -------
    dict
        The arguments, converted where that is safe (1 for a float).

    Raises
    ------
    ConfigError
        One line: the key, what is wrong, what is allowed.
    """
    parameters = list(signature_of(function, where).parameters.values())[given:]
    hints = _hints(function)
    parameters = [p for p in parameters if p.name not in supplied]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if (unpacked := _unpacked(parameters, hints)) is not None:
        hints, names, free = {**hints, **unpacked}, [*names, *unpacked], False
    label = getattr(function, "__name__", str(function))
    for key in arguments:
        if key not in names and not free:
            allowed = ", ".join(names) or "nothing"
            raise ConfigError(
                f"{where}.{key}: {label} has no such argument; it takes {allowed} "
                f"('~{where}.{key}' removes what a default brought)"
            )
    for p in parameters:
        if p.name in names and p.default is p.empty and p.name not in arguments:
            raise ConfigError(f"{where}.{p.name}: {label} needs it")
    return {k: _checked(hints.get(k, Any), v, f"{where}.{k}") for k, v in arguments.items()}


def _unpacked(
    parameters: Iterable[inspect.Parameter], hints: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The keys of a TypedDict that ``**rest: Unpack[…]`` names, and their hints; None without."""
    rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
    if rest is None or typing.get_origin(hints.get(rest)) is not typing.Unpack:
        return None
    [named] = typing.get_args(hints[rest])
    return typing.get_type_hints(named, include_extras=True)


def signature_of(function: Callable[..., Any], where: str) -> inspect.Signature:
    """The signature of a callable.

    Raises
    ------
    ConfigError
        If it has none, as many that are written in C.
    """
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        name = getattr(function, "__name__", str(function))
        raise ConfigError(
            f"{where}: {name} does not say which arguments it takes: name a function of your own "
            "that calls it"
        ) from None


def asked_for(function: Callable[..., Any], names: Iterable[str], where: str) -> list[str]:
    """Which of ``names`` a callable has among its parameters: what it asks to be given.

    Raises
    ------
    ConfigError
        If it does not say which arguments it takes.
    """
    parameters = signature_of(function, where).parameters
    known = {*parameters, *(_unpacked(parameters.values(), _hints(function)) or ())}
    return [name for name in names if name in known]


def hints_of(function: Callable[..., Any], include_extras: bool = False) -> dict[str, Any]:
    """The annotations of a callable; those of strangers that do not resolve say nothing."""
    try:
        return typing.get_type_hints(function, include_extras=include_extras)
    except Exception:  # they are code
        return {}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    source = function.__init__ if inspect.isclass(function) else function
    return hints_of(source, include_extras=True)


def _checked(hint: Any, value: Any, key: str) -> Any:
    try:
        adapter = TypeAdapter(
            hint, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        )
    except (PydanticSchemaGenerationError, PydanticUserError):
        return value
    try:
        return adapter.validate_python(value)
    except PydanticError as error:
        raise ConfigError(one_line(error, key)) from None


def one_line(error: PydanticError, prefix: str = "") -> str:
    """All that pydantic found wrong, on one line with the keys as the command line has them."""
    found = []
    for entry in error.errors():
        key = ".".join([prefix] * bool(prefix) + [str(part) for part in entry["loc"]])
        text = entry["msg"].removeprefix("Value error, ")
        if entry["type"] in ("model_type", "dict_type"):  # pydantic's words are of classes
            text = "must be a group of keys"
        got = "" if isinstance(entry["input"], Mapping) else f" (got {entry['input']!r})"
        found.append(f"{key}: {text[:1].lower()}{text[1:]}{got}" if key else f"{text}{got}")
    return "; ".join(dict.fromkeys(found))


def build(
    component: Component, where: str, *given: Any, supplied: Mapping[str, Any] | None = None
) -> Any:
    """Make the thing that a component names, with ``given`` as its leading arguments.

    ``supplied`` are arguments that the configuration cannot set.

    Raises
    ------
    ConfigError
        If the path or an argument is wrong, or the callable raises.
    """
    return call(component.target, component.arguments, where, *given, supplied=supplied)


def call(
    target: str,
    arguments: Mapping[str, Any],
    where: str,
    *given: Any,
    supplied: Mapping[str, Any] | None = None,
) -> Any:
    """As :func:`build`, of a path with arguments that no yaml can have: models, strategies."""
    function = locate(target, f"{where.removesuffix('.args')}._target_")
    supplied = supplied or {}
    checked = check_arguments(function, arguments, where, len(given), supplied)
    _require_call(function, given, {**checked, **supplied}, where)
    with blaming(ConfigError, f"{where}: ", kinds=False):
        return function(*given, **checked, **supplied)


def _require_call(
    function: Callable[..., Any], given: Sequence[Any], arguments: Mapping[str, Any], where: str
) -> None:
    """Refuse a callable that cannot be called as it is to be."""
    signature = signature_of(function, where)
    try:
        signature.bind(*given, **arguments)
    except TypeError as error:
        name = getattr(function, "__name__", str(function))
        named = "".join(f", {key}=" for key in arguments)
        raise ConfigError(
            f"{where}: {name}{signature} is called with {len(given)} arguments{named}: {error}; "
            "docs/extend.md says what it must take"
        ) from None


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of nested mappings joined by dots, as on the command line, and what stands there."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
