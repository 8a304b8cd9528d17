"""The file of a study: a closed schema, and the cells of its grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)
from pydantic import ValidationError as PydanticError

from experiments.reports.tables.metrics import Metric, measure, share_to_reach
from fedwsa.config.component import ConfigError, one_line
from fedwsa.config.places import CONFIG_DIR

FOLDER = CONFIG_DIR / "study"
SEED = "seed"
_LABEL = re.compile(r"[\w+-][\w.+-]*", re.ASCII)
_AXES = "needed: what the cells differ in, as in `axes: {wsa: [off, on], seed: [0, 1, 2]}`"
_LONGEST = 240  # bytes of a folder's name that every file system takes


def key_of(override: str) -> str:
    """The key or group that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def merged(*lists: Iterable[str]) -> list[str]:
    """Overrides one after the other; a later one replaces an earlier one of the same key."""
    return list({key_of(o): o for overrides in lists for o in overrides}.values())


def _overrides(value: Any) -> Any:
    """One override may stand without a list."""
    return [value] if isinstance(value, str) and value else value or []


Overrides = Annotated[
    list[Annotated[str, Field(pattern=r"^[+~]*[\w./@-]+=?")]], BeforeValidator(_overrides)
]
Labels = dict[str, Overrides] | list[str]
Partial = dict[str, str]
_NAMED, _LISTED = TypeAdapter(dict[str, Overrides]), TypeAdapter(list[str])


def _check_axes(axes: Any) -> None:
    """Each axis by the type that it means to be: what pydantic says of both at once is no help.

    Raises
    ------
    ConfigError
        If an axis is of neither.
    """
    if not isinstance(axes, Mapping) or not axes:
        raise ConfigError(f"axes: {_AXES}")
    for axis, labels in axes.items():
        if not isinstance(labels, Mapping | list):
            got = labels or "nothing"
            raise ConfigError(f"axes.{axis}: a list of values, or LABEL: [OVERRIDES] (got {got})")
        try:
            (_NAMED if isinstance(labels, Mapping) else _LISTED).validate_python(labels)
        except PydanticError as error:
            raise ConfigError(one_line(error, f"axes.{axis}")) from None


def _seeds(value: Any) -> Any:
    """A number of seeds, or which."""
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(n, str | int) and str(n).isdigit() for n in numbers):
        raise ValueError("how many seeds, or a list of them, as in `seeds: 8`")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Main(_Section):
    """Cells that were named beforehand as those which the study is about."""

    cell: Partial
    seeds: Annotated[int | list[int] | None, BeforeValidator(_seeds)] = None

    @property
    def all_seeds(self) -> list[int]:
        """The seeds; a number is that many from 0."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds or [])


class Study(_Section):
    """What a study file says; :doc:`docs/studies.md` explains each key."""

    description: str = ""
    base: Overrides = []
    axes: Annotated[dict[str, Labels], Field(min_length=1)]
    exclude: list[Partial] = []
    main: list[Main] = []
    baseline: Partial = {}
    metric: Metric = "accuracy"
    target: Annotated[float, AfterValidator(share_to_reach)] | None = None

    @model_validator(mode="after")
    def _refuse_what_does_not_fit_together(self) -> Study:
        owner: dict[str, str] = {}
        for axis in self.axes:
            _check_axis(axis, self.labels(axis))
            for key in self.keys_of(axis):
                if owner.setdefault(key, axis) != axis:
                    raise ValueError(f"axes: {owner[key]} and {axis} both set {key}")
        partials = [("exclude", p) for p in self.exclude] + [("main", m.cell) for m in self.main]
        for where, partial in [*partials, ("baseline", self.baseline)]:
            self._check_partial(where, partial)
        seeds = self.axes.get(SEED, [])
        if not isinstance(seeds, list) or not all(s.isdigit() for s in seeds):
            raise ValueError("axes.seed: must be a list of numbers, as in `seed: [0, 1, 2]`")
        if any(m.seeds is not None for m in self.main) and not seeds:
            raise ValueError("main.seeds: needs an axis `seed: [0, 1, ...]`")
        if SEED in self.baseline:
            raise ValueError("baseline: seeds are what pairs are made of, not what is compared")
        if measure(self.metric).to_target and self.target is None:
            raise ValueError(f"metric={self.metric}: needs target, the accuracy to reach")
        return self

    def _check_partial(self, where: str, partial: Partial) -> None:
        for axis, label in partial.items():
            if axis not in self.axes:
                raise ValueError(f"{where}: {_unknown(axis, self.axes, 'axis', 'axes')}")
            known = [label for label, _ in self.labels(axis)]
            if label not in known and not (axis == SEED and where == "main"):
                raise ValueError(f"{where}.{axis}: {_unknown(label, known, 'label', 'labels')}")

    def labels(self, axis: str) -> list[tuple[str, list[str]]]:
        """The labels of an axis with their overrides; of a list its values, which are both."""
        values = self.axes[axis]
        if isinstance(values, dict):
            return list(values.items())
        return [(value, [f"{axis}={value}"]) for value in values]

    def keys_of(self, axis: str) -> set[str]:
        """The keys that an axis sets."""
        return {key_of(o) for _, overrides in self.labels(axis) for o in overrides}


def _check_axis(axis: str, labels: list[tuple[str, list[str]]]) -> None:
    if not labels:
        raise ValueError(f"axes.{axis}: names nothing")
    names = [name for name, _ in labels]
    for text in (axis, *names):
        if not _LABEL.fullmatch(text):
            raise ValueError(
                f"axes.{axis}: {text!r} cannot name a folder; give it a label of letters, "
                "digits and ._+- as in `LABEL: [OVERRIDE, ...]`"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"axes.{axis}: a value stands there twice")


def _unknown(name: str, known: Iterable[str], kind: str, kinds: str) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"there is no {kind} {name}; {hint}{kinds}: {', '.join(known)}"


class _Loader(yaml.BaseLoader):  # type: ignore[misc]  # yaml has no types
    """Every scalar as it is typed (``off`` is no boolean), and no key twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            mark = node.value[i][0].start_mark
            raise yaml.MarkedYAMLError(problem=f"the key {key} stands twice", problem_mark=mark)
    return {
        str(key): loader.construct_object(value, deep=True)
        for key, (_, value) in zip(keys, node.value, strict=True)
    }


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def shipped() -> dict[str, Path]:
    """The studies that come with fedwsa, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a study, by its name or path.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ConfigError(f"there is no file {name}")
        return Path(name)
    if name not in (studies := shipped()):
        raise ConfigError(
            _unknown(name, studies, "study", "those that come with fedwsa")
            + "; or name a FILE.yaml"
        )
    return studies[name]


def load(file: Path) -> Study:
    """Read the file of a study.

    Raises
    ------
    ConfigError
        All that is wrong with it, on one line.
    """
    try:
        values = _Loader(file.read_text(encoding="utf-8")).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {_what_is_wrong(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    return parse(values, str(file))


def _what_is_wrong(error: yaml.YAMLError) -> str:
    """The line, and what is wrong there, without YAML's picture of it."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error).partition("\n")[0]
    mark = error.problem_mark or error.context_mark
    words = ", ".join(filter(None, [error.context, error.problem]))
    return f"line {mark.line + 1}: {words}" if mark else words


def parse(values: Any, where: str) -> Study:
    """Check the values of a study; see :func:`load`."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: is no study; axes: {_AXES}")
    for key in values:
        if key not in Study.model_fields:
            text = _unknown(str(key), Study.model_fields, "key", "keys of a study")
            raise ConfigError(f"{where}: {text}")
    try:
        _check_axes(values.get("axes"))
        return Study.model_validate(values)
    except PydanticError as error:
        raise ConfigError(f"{where}: {one_line(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes
    ----------
    axes : dict of str to str
        Its label on each axis, in their order.
    overrides : list of str
        What composes it, as on the command line of ``fedwsa``.
    main : bool
        Whether it is among the comparisons that were named beforehand.
    """

    axes: dict[str, str]
    overrides: list[str]
    main: bool = False

    @property
    def name(self) -> str:
        """Its folder below that of the study."""
        return ",".join(f"{axis}={label}" for axis, label in self.axes.items())

    @property
    def group(self) -> str:
        """The name without the seed: cells of a group are repetitions of each other."""
        return ",".join(f"{a}={label}" for a, label in self.axes.items() if a != SEED)

    @property
    def seed(self) -> int:
        """Its place in the order of running: all cells of one seed come before the next."""
        return int(label) if (label := self.axes.get(SEED, "")).isdigit() else 0


def matches(axes: Mapping[str, str], partial: Mapping[str, str]) -> bool:
    """Whether a cell is among those that a partial one names."""
    return all(axes.get(axis) == label for axis, label in partial.items())


def expand(study: Study, overrides: Sequence[str] = ()) -> list[Cell]:
    """All cells of a study, those of the first seed first.

    Parameters
    ----------
    study
        The study.
    overrides
        For all cells, beside what the study says.

    Raises
    ------
    ConfigError
        If an override sets what an axis sets, or nothing is left.
    """
    for override in overrides:
        for axis in study.axes:
            if key_of(override) in study.keys_of(axis):
                raise ConfigError(
                    f"{override}: {axis} is an axis of the study; "
                    f"--only {axis}=LABEL takes some of its cells"
                )
    labels = {axis: dict(study.labels(axis)) for axis in study.axes}
    grid = [dict(zip(labels, row, strict=True)) for row in product(*labels.values())]
    cells: dict[str, Cell] = {}
    for axes in grid + [more for known in grid for more in _more_seeds(study, known)]:
        if any(matches(axes, partial) for partial in study.exclude):
            continue
        own = [labels[a].get(label, [f"{a}={label}"]) for a, label in axes.items()]
        main = any(matches(axes, m.cell) for m in study.main)
        cell = Cell(axes, merged(study.base, *own, overrides), main)
        if len(cell.name.encode()) > _LONGEST:
            raise ConfigError(f"axes: the folder's name {cell.name} is too long; shorten labels")
        cells.setdefault(cell.name, cell)
    if not cells:
        raise ConfigError("exclude: leaves no cell")
    return sorted(cells.values(), key=lambda cell: cell.seed)


def _more_seeds(study: Study, axes: dict[str, str]) -> Iterable[dict[str, str]]:
    """The same cell at the seeds that main comparisons have beyond the others.

    What a main cell is compared with gets them, too.
    """
    for main in study.main:
        partner = {axis: label for axis, label in main.cell.items() if axis not in study.baseline}
        if matches(axes, main.cell) or matches(axes, {**partner, **study.baseline}):
            for seed in main.all_seeds:
                yield {**axes, SEED: str(seed)}


def selected(study: Study, cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells that ``--only AXIS=LABEL[,LABEL...]`` names: of one axis any, of several all.

    Raises
    ------
    ConfigError
        If there is no such axis or label.
    """
    wanted: dict[str, set[str]] = {}
    for text in only:
        axis, _, labels = text.partition("=")
        if axis not in study.axes:
            raise ConfigError(f"--only {text}: {_unknown(axis, study.axes, 'axis', 'axes')}")
        known = list(dict.fromkeys(cell.axes[axis] for cell in cells))
        for label in labels.split(","):
            if label not in known:
                raise ConfigError(f"--only {text}: {_unknown(label, known, 'label', 'labels')}")
            wanted.setdefault(axis, set()).add(label)
    chosen = [c for c in cells if all(c.axes[a] in labels for a, labels in wanted.items())]
    if not chosen:
        raise ConfigError(f"--only {' '.join(only)}: no cell is left")
    return chosen
