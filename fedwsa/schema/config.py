"""The typed, closed schema of a run: what must fit together.

Defaults stand in ``conf/`` only; the sections' types and ranges in :mod:`fedwsa.schema.sections`.
The arguments of exchangeable parts are checked against their signatures, see
:mod:`fedwsa.config.component`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from fedwsa.algorithms.attacks.attack import attackers
from fedwsa.config.component import Component, ConfigError, Section
from fedwsa.data.federated import DataSpec
from fedwsa.fleet import size_rules, systems
from fedwsa.fleet.devices import Device
from fedwsa.learngene.settings import Init, Pretraining
from fedwsa.schema.schedule import factor
from fedwsa.schema.sections import (
    Attack,
    Checkpoint,
    Clients,
    Compress,
    Dataset,
    Evaluation,
    Guard,
    Local,
    Pace,
    Privacy,
    Runtime,
    Strategy,
    Subset,
    Wsa,
)


class Config(Section):
    """A run: what ``conf/config.yaml`` and its groups say, checked."""

    rounds: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Device
    cache_dir: str
    clients: Clients
    evaluation: Evaluation
    checkpoint: Checkpoint
    guard: Guard
    pace: Pace
    sampler: Component
    compress: Compress
    privacy: Privacy
    dataset: Dataset
    subset: Subset
    partition: Component
    skew: Component
    attack: Attack
    model: Component
    sizes: dict[str, dict[str, Any]]
    init: Init
    pretraining: Pretraining
    strategy: Strategy
    schedule: Component
    server_schedule: Component
    decay_schedule: Component
    merge: Component
    wsa: Wsa
    local: Local
    runtime: Runtime
    tracker: dict[str, Component]

    @field_validator("server_schedule", "decay_schedule", mode="before")
    @classmethod
    def _refuse_a_name_alone(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            raise ValueError(f"say schedule@{info.field_name}={value}")
        return value

    @model_validator(mode="after")
    def _refuse_checkpoints_elsewhere(self) -> Config:
        if self.checkpoint.every is not None and self.runtime.name != "ray":
            raise ValueError("checkpoint.every needs runtime=ray, which knows what clients keep")
        return self

    @model_validator(mode="after")
    def _refuse_splits_without_images_for_clients(self) -> Config:
        if self.init.public + self.evaluation.validation >= 1:
            raise ValueError("init.public and evaluation.validation leave no images for clients")
        return self

    @model_validator(mode="after")
    def _refuse_attackers_that_add_no_noise(self) -> Config:
        if self.attack.share and self.privacy.local is not None:
            raise ValueError("attack does not go with privacy.local: attackers would add no noise")
        return self

    @model_validator(mode="after")
    def _refuse_to_ask_who_keeps_silent(self) -> Config:
        asked = {"clients.unseen": self.clients.unseen, "evaluation.adapt": self.evaluation.adapt}
        for key in [key for key, value in asked.items() if value and self.withheld]:
            raise ValueError(
                f"{key}: clients keep their accuracies to themselves (privacy.reports=withheld)"
            )
        return self

    @model_validator(mode="after")
    def _refuse_sizes_that_do_not_fit(self) -> Config:
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
    def _refuse_noise_of_both_sides(self) -> Config:
        if self.privacy.local is not None and self.strategy.adds_noise:
            raise ValueError("privacy.local does not go with a strategy that adds noise itself")
        if self.privacy.local is not None and self.guard.repeats:
            raise ValueError("privacy.local needs guard.repeats=0: each answer has its price")
        return self

    @model_validator(mode="after")
    def _refuse_secrecy_without_noise(self) -> Config:
        if self.privacy.noise == "secret" and not self.private:
            raise ValueError(
                "privacy.noise=secret: this run adds no noise; give privacy.local, or a strategy "
                "that does, as strategy=dp_server_fixed"
            )
        return self

    def rate(self, number: int) -> float:
        """The factor of the clients' learning rates in a round, from 1."""
        return factor(self.schedule, self.rounds, number, "schedule")

    def decay_rate(self, number: int) -> float:
        """Likewise of their weight decays."""
        return factor(self.decay_schedule, self.rounds, number, "decay_schedule")

    def server_rate(self, number: int) -> float:
        """Likewise of the server's."""
        return factor(self.server_schedule, self.rounds, number, "server_schedule")

    @cached_property
    def attackers(self) -> frozenset[int]:
        """The clients that attack."""
        return attackers(self.clients.count, self.attack.share, self.seed)

    @cached_property
    def unseen(self) -> frozenset[int]:
        """The clients that never train."""
        return systems.unseen(self.seed, self.clients.count, self.clients.unseen)

    @property
    def learning(self) -> int:
        """How many clients may train."""
        return self.clients.count - len(self.unseen)

    @property
    def cohort(self) -> int:
        """How many are asked to train in a round, if all are there."""
        return max(1, int(self.learning * self.clients.fraction))

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
        return self.model.replace(**self.sizes[size])

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
        name = self.strategy.component.name + ("+WSA" if self.wsa.enabled else "")
        return name if self.pace.synchronous else f"{name}, {self.pace.label}"

    @property
    def optimisers(self) -> set[str]:
        """The optimisers that clients may have."""
        return set(self.local.optimisers or [self.local.optimiser])
