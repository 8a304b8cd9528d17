"""The typed, closed schema of a run, and composing one from the Hydra tree in ``conf/``.

Defaults stand in ``conf/`` only; here are types, ranges and what must fit together. The
arguments of exchangeable parts are checked against their signatures, see
:mod:`fedwsa.components`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic import ValidationError as PydanticError

from fedwsa import sizes as size_rules
from fedwsa import systems
from fedwsa.components import Component, ConfigError, one_line
from fedwsa.data.federated import DataSpec, open_federated
from fedwsa.devices import Device
from fedwsa.models import InputShape
from fedwsa.scope import DEFAULT_STRENGTH, Fusion, Reduction

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra is imported where something is composed: the workers of a simulation, which get a composed
# run, are spared it.

CONFIG_DIR = Path(__file__).resolve().parent.parent / "conf"

Fraction = Annotated[float, Field(gt=0, le=1)]
_Schema = TypeVar("_Schema", bound=BaseModel)


def _cohort(value: int | str) -> int | str:
    if value not in ("auto", "off") and not (isinstance(value, int) and value >= 1):
        raise ValueError("must be auto, off, or a number above 0")
    return value


Cohort = Annotated[int | str, AfterValidator(_cohort)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Dataset(Component):
    """The examples; keys that are not named here go to the source."""

    augment: Literal["none", "crop_flip"]

    @property
    def source(self) -> Component:
        """The source alone."""
        return Component(**{"_target_": self.target, **self.arguments})


class Subset(_Section):
    """How many of the examples are used; null: all."""

    train: PositiveInt | None
    test: PositiveInt | None


class Strategy(_Section):
    """A Flower strategy by its dotted path, with free arguments."""

    target: str = Field(alias="_target_")
    args: dict[str, Any]

    @property
    def component(self) -> Component:
        """Path and arguments in the form that other parts have."""
        return Component(**{"_target_": self.target, **self.args})


class Clients(_Section):
    """The fleet, and who takes part in a round."""

    count: PositiveInt
    fraction: Fraction
    timeout: PositiveFloat | None
    table: bool
    sizes: Annotated[Any, AfterValidator(size_rules.check_wish)]
    speeds: Annotated[list[PositiveFloat], Field(min_length=1)]
    availability: Annotated[Any, AfterValidator(systems.check_availability)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    speed_spread: NonNegativeFloat
    flops_per_second: PositiveFloat
    bytes_per_second: PositiveFloat
    deadline: PositiveFloat | None
    late: Literal["drop", "cut"]

    @property
    def cuts(self) -> bool:
        """Whether a client may have to stop before its epochs are done."""
        return self.deadline is not None and self.late == "cut"


Optimiser = Literal["sgd", "adam", "adamw"]


class Local(_Section):
    """Local training."""

    epochs: PositiveInt
    batch_size: PositiveInt
    optimiser: Optimiser
    lr: PositiveFloat
    adam_lr: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegativeFloat
    lr_factors: Annotated[list[PositiveFloat], Field(min_length=1)]
    weight_decays: Annotated[list[NonNegativeFloat], Field(min_length=1)] | None
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] | None
    epoch_factors: Annotated[list[PositiveFloat], Field(min_length=1)]
    optimisers: Annotated[list[Optimiser], Field(min_length=1)] | None
    clip_norm: PositiveFloat | None
    mask_absent: bool
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    fused: bool


class Wsa(_Section):
    """Weight scope alignment; see :class:`fedwsa.strategies.fedwsa.FedWSA`."""

    enabled: bool
    strength: NonNegativeFloat
    reduction: Reduction
    fusion: Fusion
    target: Literal["fused", "initial", "fixed"]
    scope: str | None
    align: Literal["none", "after"]
    layers: str | None
    floor: PositiveFloat
    normalise: bool | None

    @model_validator(mode="before")
    @classmethod
    def _default_strength(cls, values: dict[str, Any]) -> dict[str, Any]:
        if isinstance(values, dict) and values.get("strength", 0) is None:
            return {**values, "strength": DEFAULT_STRENGTH.get(str(values.get("reduction")))}
        return values

    @model_validator(mode="after")
    def _fixed_needs_a_scope(self) -> Wsa:
        if self.target == "fixed" and self.scope is None:
            raise ValueError("target=fixed needs wsa.scope=FILE, a model.safetensors")
        return self


class Init(Component):
    """How the model is initialised; keys that are not named here go to the method."""

    file: str | None
    public: Annotated[float, Field(ge=0, lt=1)]

    @property
    def method(self) -> Component:
        """The method alone."""
        return Component(**{"_target_": self.target, **self.arguments})


class Training(_Section):
    """Training in one place, with AdamW."""

    steps: Annotated[int, Field(ge=0)]
    batch_size: PositiveInt
    lr: PositiveFloat
    weight_decay: NonNegativeFloat


class Pretraining(_Section):
    """How a learngene is learned from public images, and fitted to them."""

    teacher: str | None
    temperature: PositiveFloat
    hard: NonNegativeFloat
    teach: Training
    learn: Training
    fit: Training


class Evaluation(_Section):
    """How often the global model is evaluated, in rounds."""

    every: PositiveInt
    clients_every: PositiveInt
    batch_size: PositiveInt
    validation: Annotated[float, Field(ge=0, lt=1)]


class CheckpointConfig(_Section):
    """How often a run leaves a checkpoint, in rounds; null: never."""

    every: PositiveInt | None


class Runtime(_Section):
    """What runs the clients."""

    name: Literal["ray", "flower"]
    workers: PositiveInt | None
    address: str | None
    gpus_per_worker: NonNegativeFloat | None
    cohort: Cohort

    @model_validator(mode="after")
    def _flower_has_less(self) -> Runtime:
        if self.name == "flower":
            if self.address is not None:
                raise ValueError("address needs runtime=ray")
            if self.cohort not in ("auto", "off"):
                raise ValueError("cohort needs runtime=ray")
        return self


class Config(_Section):
    """A whole run."""

    rounds: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Device
    cache_dir: str
    clients: Clients
    evaluation: Evaluation
    checkpoint: CheckpointConfig
    dataset: Dataset
    subset: Subset
    partition: Component
    skew: Component
    model: Component
    sizes: dict[str, dict[str, Any]]
    init: Init
    pretraining: Pretraining
    strategy: Strategy
    wsa: Wsa
    local: Local
    runtime: Runtime
    tracker: dict[str, Component]

    @model_validator(mode="after")
    def _checkpoints_need_our_engine(self) -> Config:
        if self.checkpoint.every is not None and self.runtime.name != "ray":
            raise ValueError("checkpoint.every needs runtime=ray, which knows what clients keep")
        return self

    @model_validator(mode="after")
    def _cohorts_are_fp32(self) -> Config:
        if isinstance(self.runtime.cohort, int) and self.local.precision != "fp32":
            raise ValueError("runtime.cohort needs local.precision=fp32")
        return self

    @model_validator(mode="after")
    def _cut_clients_are_alone(self) -> Config:
        if isinstance(self.runtime.cohort, int) and self.clients.cuts:
            raise ValueError("runtime.cohort needs clients.late=drop, or no clients.deadline")
        return self

    @model_validator(mode="after")
    def _images_are_left(self) -> Config:
        if self.init.public + self.evaluation.validation >= 1:
            raise ValueError("init.public and evaluation.validation leave no images for clients")
        return self

    @model_validator(mode="after")
    def _sizes_fit_the_clients(self) -> Config:
        wish, key = self.clients.sizes, "sizes"
        try:
            size_rules.check_names(self.sizes)
            key = "clients.sizes"
            if not size_rules.names_in(wish, self.sizes):
                raise ValueError("there are no sizes")
            if wish != size_rules.SPEED:
                size_rules.by_wish(wish, self.clients.count, self.seed)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        return self

    @property
    def size_names(self) -> list[str]:
        """The sizes that take part in the run."""
        return size_rules.names_in(self.clients.sizes, self.sizes)

    def model_of(self, size: str | None) -> Component:
        """The model of a size; None: the model as it stands.

        Raises
        ------
        ConfigError
            If there is no such size.
        """
        if size in (None, size_rules.WHOLE):
            return self.model
        if size not in self.sizes:
            known = ", ".join([*self.sizes, size_rules.WHOLE])
            raise ConfigError(f"there is no size {size}; there are {known}")
        return size_rules.component_of(self.model, self.sizes[size])

    def client_sizes(self, shape: InputShape, classes: int) -> list[str]:
        """The size of each client; ``shape`` and ``classes`` are needed for what models cost."""
        wish, clients = self.clients.sizes, self.clients
        if wish == size_rules.SPEED:
            costs = {
                name: size_rules.model_cost(self.model_of(name), shape, classes)
                for name in self.size_names
            }
            return size_rules.by_speed(costs, [self.client_speed(k) for k in range(clients.count)])
        return size_rules.by_wish(wish, clients.count, self.seed)

    def client_speed(self, client: int) -> float:
        """How fast a client's device is; one is the median, or what carries the largest size."""
        fleet = self.clients
        classes = fleet.speeds if fleet.sizes == size_rules.SPEED else [1.0]
        return systems.speed(self.seed, client, fleet.speed_spread, classes)

    def client_device(self, client: int) -> systems.Device:
        """A client's device: a slow one computes and communicates slowly."""
        fleet, factor = self.clients, self.client_speed(client)
        return systems.Device(fleet.flops_per_second * factor, fleet.bytes_per_second * factor)

    @property
    def data_spec(self) -> DataSpec:
        """The data of this run, for :func:`fedwsa.data.federated.open_federated`."""
        return DataSpec(
            source=self.dataset.source,
            partition=self.partition,
            clients=self.clients.count,
            seed=self.seed,
            cache_dir=self.cache_dir,
            public=self.init.public,
            validation=self.evaluation.validation,
            train=self.subset.train,
            test=self.subset.test,
        )

    @property
    def label(self) -> str:
        """The algorithm as a table names it, for instance ``FedAvg+WSA``."""
        return self.strategy.component.name + ("+WSA" if self.wsa.enabled else "")

    @property
    def optimisers(self) -> set[str]:
        """The optimisers that clients may have."""
        return set(self.local.optimisers or [self.local.optimiser])


def options(group: str) -> dict[str, Component]:
    """The options of a group of ``conf/`` that are components, by name."""
    from omegaconf import OmegaConf

    files = sorted((CONFIG_DIR / group).glob("*.yaml"))
    return {f.stem: Component.model_validate(OmegaConf.load(f)) for f in files}


def parse(composed: DictConfig) -> Config:
    """Check what Hydra composed as a run; see :func:`parse_as`.

    ``clients.count: null`` becomes the number of clients that the partition has, so that nothing
    else meets it; the data are opened for that.
    """
    values = _plain(composed)
    clients = values["clients"]
    if clients["count"] is None:
        # Any number, so that all other keys are checked before.
        one = _checked(Config, {**values, "clients": {**clients, "count": 1, "sizes": None}})
        opened = open_federated(one.data_spec.model_copy(update={"clients": None}))
        count = len(opened.partition.shares)
        values = {**values, "clients": {**clients, "count": count}}
    return _checked(Config, values)


def parse_as(schema: type[_Schema], composed: DictConfig) -> _Schema:
    """Check what Hydra composed against a schema.

    Raises
    ------
    ConfigError
        All that is wrong, on one line.
    """
    return _checked(schema, _plain(composed))


def _plain(composed: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be given") from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    return cast(dict[str, Any], values)


def _checked(schema: type[_Schema], values: Mapping[str, Any]) -> _Schema:
    try:
        return schema.model_validate(values)
    except PydanticError as error:
        raise ConfigError(one_line(error)) from None


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose a run from ``conf/`` and overrides as on the command line; see :func:`compose_as`."""
    return parse(_composed_by_hydra("config", overrides))


def compose_as(schema: type[_Schema], name: str, overrides: Sequence[str] = ()) -> _Schema:
    """Compose the file ``name`` of ``conf/`` with overrides, and check it against a schema.

    Raises
    ------
    ConfigError
        If a value is wrong. Unknown keys and options raise Hydra's own errors.
    """
    return parse_as(schema, _composed_by_hydra(name, overrides))


def _composed_by_hydra(name: str, overrides: Sequence[str]) -> DictConfig:
    import hydra

    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra.compose(name, overrides=free_arguments(overrides))


def from_run_config(run_config: Mapping[str, object]) -> Config:
    """Compose the run of a deployment: Flower's run_config takes scalars, so all is in one.

    Parameters
    ----------
    run_config
        Its ``overrides`` are written as on the command line; none: the defaults.
    """
    return _composed(str(run_config.get("overrides", "")))


@lru_cache(maxsize=1)  # a client asks at every message
def _composed(overrides: str) -> Config:
    return compose(shlex.split(overrides))


_FREE = ("strategy.args.", "strategy.args=", "sizes.", "sizes=", "tracker.")


def free_arguments(overrides: Sequence[str]) -> list[str]:
    """Let ``strategy.args.KEY=VALUE`` name any key: Hydra wants ``++`` before a new one.

    ``sizes.NAME.KEY=VALUE`` and ``tracker.NAME.KEY=VALUE`` likewise. Everything else stays
    closed; the arguments are checked against the signatures of strategy, model and tracker.
    """
    return [f"++{o}" if o.startswith(_FREE) else o for o in overrides]
