"""The typed, closed schema of a run, and composing one from the Hydra tree in ``conf/``.

Defaults stand in ``conf/`` only; the sections' types and ranges in :mod:`fedwsa.sections`; here is
what must fit together. The arguments of exchangeable parts are checked against their signatures,
see :mod:`fedwsa.components`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from pydantic import (
    BaseModel,
    Field,
    PositiveInt,
    model_validator,
)
from pydantic import ValidationError as PydanticError

from fedwsa.components import Component, ConfigError, one_line
from fedwsa.data.federated import DataSpec, open_federated
from fedwsa.fleet import size_rules, systems
from fedwsa.fleet.devices import Device
from fedwsa.launcher import APPS
from fedwsa.models import InputShape
from fedwsa.remembered import in_run
from fedwsa.sections import (
    Checkpoint,
    Clients,
    Dataset,
    Evaluation,
    Guard,
    Init,
    Local,
    Pretraining,
    Privacy,
    Runtime,
    Section,
    Strategy,
    Subset,
    Wsa,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra is imported where something is composed: the workers of a simulation, which get a composed
# run, are spared it.

CONFIG_DIR = APPS / "conf"

_Schema = TypeVar("_Schema", bound=BaseModel)


class Config(Section):
    """A whole run."""

    rounds: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Device
    cache_dir: str
    clients: Clients
    evaluation: Evaluation
    checkpoint: Checkpoint
    guard: Guard
    privacy: Privacy
    dataset: Dataset
    subset: Subset
    partition: Component
    skew: Component
    model: Component
    sizes: dict[str, dict[str, Any]]
    init: Init
    pretraining: Pretraining
    strategy: Strategy
    merge: Component
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

    @model_validator(mode="after")
    def _noise_is_added_once(self) -> Config:
        if self.privacy.local is not None and self.strategy.adds_noise:
            raise ValueError("privacy.local does not go with a strategy that adds noise itself")
        if self.privacy.local is not None and self.guard.repeats:
            raise ValueError("privacy.local needs guard.repeats=0: each answer has its price")
        return self

    @model_validator(mode="after")
    def _secret_noise_is_drawn(self) -> Config:
        if self.privacy.noise == "secret" and not self.private:
            raise ValueError(
                "privacy.noise=secret: this run adds no noise; give privacy.local, or a strategy "
                "that does, as strategy=dp_server_fixed"
            )
        return self

    @property
    def private(self) -> bool:
        """Whether the run is to be differentially private, centrally or locally."""
        return self.privacy.local is not None or self.strategy.adds_noise

    @property
    def withheld(self) -> bool:
        """Whether clients keep to themselves what the noise does not cover: losses, accuracies."""
        return self.private and self.privacy.reports == "withheld"

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


def own_options() -> Path | None:
    """The folder ``conf`` of the working directory, whose options stand beside ours."""
    folder = Path("conf").resolve()
    return folder if folder.is_dir() and folder != CONFIG_DIR else None


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
    clients = values.get("clients")
    if isinstance(clients, dict) and clients.get("count", 1) is None:
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
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fedwsa.search_path import register

    register()
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra.compose(name, overrides=free_arguments(overrides))
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # what Hydra does not foresee, as local=0
        raise ConfigError(f"cannot compose {shlex.join(overrides)}: {error}") from error


def from_run_config(run_config: Mapping[str, object]) -> Config:
    """Compose the run of a deployment: Flower's run_config takes scalars, so all is in one.

    Parameters
    ----------
    run_config
        Its ``overrides`` are written as on the command line; none: the defaults.

    Raises
    ------
    ConfigError
        If they cannot be composed.
    """
    from hydra.errors import HydraException

    words = str(run_config.get("overrides", ""))
    try:
        return _composed(words)
    except HydraException as error:
        from fedwsa.explain import explain  # which imports this module

        raise ConfigError(f"overrides: {explain(error, shlex.split(words))}") from None
    except ConfigError:
        raise
    except ValueError as error:  # quotes that do not match
        raise ConfigError(f"overrides: {error}") from None


@in_run(1)  # a client asks at every message
def _composed(overrides: str) -> Config:
    return compose(shlex.split(overrides))


_FREE = ("strategy.args.", "strategy.args=", "sizes.", "sizes=", "tracker.")


def free_arguments(overrides: Sequence[str]) -> list[str]:
    """Let ``strategy.args.KEY=VALUE`` name any key: Hydra wants ``++`` before a new one.

    ``sizes.NAME.KEY=VALUE`` and ``tracker.NAME.KEY=VALUE`` likewise. Everything else stays
    closed; the arguments are checked against the signatures of strategy, model and tracker.
    """
    return [f"++{o}" if o.startswith(_FREE) else o for o in overrides]
