"""The typed, closed schema of the study; defaults stand in ``conf/connectivity.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from fedwsa.config.component import Component, Section
from fedwsa.fleet.devices import Device
from fedwsa.merge.connectivity import FEWEST
from fedwsa.schema.compose import compose_as
from fedwsa.schema.sections import Dataset, Local, Optimiser, Subset
from fedwsa.scope.weight_scope import Fusion, Reduction

Init = Literal["same", "apart"]


class Condition(Section):
    """In what B differs from A, or which data both have."""

    lr: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    batch_size: PositiveInt | None = None
    optimiser: Optimiser | None = None
    data: Literal["same", "labels", "dirichlet"] = "same"


class Target(Section):
    """Towards what networks are trained with WSA, and how strongly."""

    strength: NonNegativeFloat
    reduction: Reduction
    fusion: Fusion
    layers: str | None
    floor: PositiveFloat


class ConnectivityConfig(Section):
    """A study of mode connectivity, as ``conf/connectivity.yaml`` has it."""

    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
    folder: str
    device: Device
    cache_dir: str
    subset: Subset
    conditions: Annotated[dict[str, Condition], Field(min_length=1)]
    starts: Annotated[list[Init], Field(min_length=1)]
    alpha: PositiveFloat
    wsa: Target
    points: Annotated[int, Field(ge=FEWEST)]
    batches: PositiveInt
    dataset: Dataset
    model: Component
    local: Local

    @model_validator(mode="after")
    def _refuse_drawn_conditions(self) -> ConnectivityConfig:
        local = self.local
        plain = local.lr_factors == [1.0] and local.epoch_factors == [1.0]
        if not plain or local.weight_decays or local.batch_sizes or local.optimisers:
            raise ValueError("local=equal is wanted here: conditions say in what networks differ")
        return self


def compose(overrides: Sequence[str]) -> ConnectivityConfig:
    """Compose the study's configuration from ``conf/`` and overrides.

    Raises
    ------
    ConfigError
        If a value is wrong.
    """
    return compose_as(ConnectivityConfig, "connectivity", overrides)
