"""The typed, closed schema of ``fedwsa-learngene``; defaults stand in ``conf/learngene.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from fedwsa.config.component import Component, ConfigError, Section
from fedwsa.fleet.devices import Device
from fedwsa.learngene import METHODS
from fedwsa.learngene.settings import Init, Pretraining
from fedwsa.schema.compose import compose_as
from fedwsa.schema.sections import Dataset


def _known(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"must be one of {', '.join(METHODS)}")
    return name


def _new(variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if taken := next((name for name in variants if name in METHODS), None):
        raise ValueError(f"{taken} is a method of its own; name the variant otherwise")
    return variants


_Label = Annotated[str, Field(pattern=r"^[\w.+-]+$")]


class Bench(Section):
    """The benchmark: a grid of sizes, each initialised by each method."""

    folder: str
    methods: Annotated[list[Annotated[str, AfterValidator(_known)]], Field(min_length=1)]
    variants: Annotated[dict[_Label, dict[str, Any]], AfterValidator(_new)] | None
    seeds: Annotated[list[int], Field(min_length=1)]
    widths: Annotated[list[PositiveFloat], Field(min_length=1)]
    depths: Annotated[list[PositiveInt], Field(min_length=1)]
    epochs: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    long: PositiveInt | None
    images: PositiveInt | None
    lr: PositiveFloat
    batch_size: PositiveInt
    transfer: Literal["digits", "classes"] | None


class LearngeneConfig(Section):
    """A run of ``fedwsa-learngene``, as ``conf/learngene.yaml`` has it."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Device
    cache_dir: str
    classes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2)] | None
    sizes: dict[str, dict[str, Any]]
    size: Any
    out: str | None
    dataset: Dataset
    model: Component
    init: Init
    pretraining: Pretraining
    bench: Bench

    @property
    def family(self) -> list[Component]:
        """The sizes that a learngene is to serve."""
        return [self.model.replace(**arguments) for arguments in self.sizes.values()]

    @property
    def wanted(self) -> Component:
        """The size that ``init`` makes.

        Raises
        ------
        ConfigError
            If it is not given, or no name in ``sizes``.
        """
        if isinstance(self.size, Mapping):
            return self.model.replace(**{str(k): v for k, v in self.size.items()})
        if isinstance(self.size, str) and self.size in self.sizes:
            return self.model.replace(**self.sizes[self.size])
        raise ConfigError(
            f"size: must be one of {', '.join(self.sizes)}, or arguments of the model as "
            f"'size={{width: 0.5, depth: 3}}'; got {self.size}"
        )

    @property
    def gene_file(self) -> Path:
        """Where the learngene lies.

        Raises
        ------
        ConfigError
            If it is not given.
        """
        if self.init.file is None:
            raise ConfigError("init.file: must be given, the file of the learngene")
        return Path(self.init.file)


def compose(overrides: Sequence[str]) -> LearngeneConfig:
    """Compose the command's configuration from ``conf/`` and overrides.

    Raises
    ------
    ConfigError
        If a value is wrong.
    """
    return compose_as(LearngeneConfig, "learngene", overrides)
