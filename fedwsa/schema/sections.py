"""The sections of a run's schema: types and ranges of what stands in ``conf/``."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from fedwsa.algorithms.attacks.attack import NoAttack
from fedwsa.algorithms.compression.rules import none
from fedwsa.algorithms.objective import Objective
from fedwsa.algorithms.traits import Traits, traits_of
from fedwsa.config.component import Component, Section, locate
from fedwsa.fleet import size_rules, systems
from fedwsa.fleet.staleness import Discount
from fedwsa.models.augment import Transform
from fedwsa.scope.weight_scope import Fusion, Reduction

Fraction = Annotated[float, Field(gt=0, le=1)]


def _cohort(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value not in ("auto", "off") and not whole:
        raise ValueError("must be auto, off, or a whole number above 0")
    return value


Cohort = Annotated[int | str, BeforeValidator(_cohort)]


class Dataset(Component):
    """The examples; keys that are not named here go to the source."""

    augment: Literal["none", "flip", "crop_flip"]

    @property
    def source(self) -> Component:
        """The source alone."""
        return Component.of(self.target, **self.arguments)


class Attack(Component):
    """What some clients do to the others; keys that are not named here are the attack's."""

    share: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="before")
    @classmethod
    def _of_nobody(cls, value: Any) -> Any:
        """Without an attack nobody attacks, whatever the share: a sweep has one for all."""
        none = isinstance(value, dict) and locate(value.get("_target_", ""), "attack") is NoAttack
        return {**value, "share": 0.0} if none else value

    @property
    def rule(self) -> Component:
        """The attack alone."""
        return Component.of(self.target, **self.arguments)


class Compress(Component):
    """What clients send of their updates; keys that are not named here are the rule's."""

    feedback: bool
    rescale: bool

    @property
    def rule(self) -> Component:
        """The rule alone."""
        return Component.of(self.target, **self.arguments)

    @property
    def does_nothing(self) -> bool:
        """Whether all is sent as it is."""
        return locate(self.target, "compress") is none and not self.rescale


class Pace(Section):
    """When the server goes a step, and what a late answer counts."""

    rounds: bool
    buffer: PositiveInt | None
    period: PositiveFloat | None
    concurrency: PositiveInt | None
    moves: Literal["update", "model"]
    rate: PositiveFloat
    discount: Discount
    exponent: NonNegativeFloat
    bound: NonNegativeFloat

    @model_validator(mode="after")
    def _refuse_what_does_not_go_together(self) -> Pace:
        asked = {
            "buffer": self.buffer is not None,
            "period": self.period is not None,
            "concurrency": self.concurrency is not None,
            "moves": self.moves != "update",
            "rate": self.rate != 1,
            "discount": self.discount != "constant",
        }
        if self.rounds and any(asked.values()):
            key = next(key for key, wished in asked.items() if wished)
            raise ValueError(
                f"{key} means nothing in rounds; take pace=fedbuff, fedasync, periodic"
            )
        if not self.rounds and asked["buffer"] == asked["period"]:
            raise ValueError("the server goes a step by buffer or by period; set one of them")
        if self.moves == "model" and self.rate > 1:
            raise ValueError("rate is the part of the way to an answer, 1 at most")
        return self

    @property
    def synchronous(self) -> bool:
        """Whether it waits for all of a cohort."""
        return self.rounds

    @property
    def label(self) -> str:
        """It as a table names it."""
        if self.period is not None:
            return f"each {self.period:g} s"
        return "asynchronous" if self.buffer == 1 else f"buffer {self.buffer}"

    def clients(self, cohort: int) -> int:
        """How many train at once, where so many would in a round."""
        return cohort if self.concurrency is None else self.concurrency


class Subset(Section):
    """How many of the examples are used; null: all."""

    train: PositiveInt | None
    test: PositiveInt | None


class Strategy(Section):
    """A Flower strategy by its dotted path, with free arguments."""

    target: str = Field(alias="_target_")
    args: dict[str, Any]

    @property
    def component(self) -> Component:
        """Path and arguments in the form that other parts have."""
        return Component.of(self.target, **self.args)

    @cached_property
    def traits(self) -> list[Traits]:
        """What it says of itself, then what one that it wraps does, to the innermost."""
        found, component = [], self.component
        while True:
            found.append(traits_of(locate(component.target, "strategy._target_")))
            inner = component.arguments.get("strategy")
            if not (isinstance(inner, dict) and "_target_" in inner):
                return found
            component = Component.model_validate(inner)

    @property
    def adds_noise(self) -> bool:
        """Whether it, or one that it wraps, is differentially private."""
        return any(of.adds_noise for of in self.traits)

    @property
    def objectives(self) -> list[type[Objective]]:
        """The client halves that it, or one that it wraps, brings."""
        return [objective for of in self.traits for objective in of.objectives]


class Clients(Section):
    """The fleet, and who takes part in a round."""

    count: PositiveInt
    fraction: Fraction
    unseen: Annotated[float, Field(ge=0, lt=1)]
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
    def traced(self) -> bool:
        """Whether who is there goes by the clock."""
        return isinstance(self.availability, dict)

    @property
    def cuts(self) -> bool:
        """Whether a client may have to stop before its epochs are done."""
        return self.deadline is not None and self.late == "cut"


Optimiser = Literal["sgd", "adam", "adamw"]


class Local(Section):
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
    weight_augmentation: Literal["off"] | Transform
    objectives: list[str]
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    fused: bool

    @property
    def alike(self) -> bool:
        """Whether all clients train under the usual conditions."""
        lists = (self.weight_decays, self.batch_sizes, self.optimisers)
        return not any(lists) and self.lr_factors == self.epoch_factors == [1.0]

    @property
    def bf16(self) -> bool:
        """Whether networks compute in bfloat16 where torch's autocast does."""
        return self.precision == "bf16"

    @property
    def largest_batch(self) -> int:
        """The most samples that a client takes at once."""
        return max(self.batch_sizes or [self.batch_size])


class Wsa(Section):
    """Weight scope alignment; see :class:`fedwsa.algorithms.wsa.server.FedWSA`."""

    enabled: bool
    strength: NonNegativeFloat | None
    reduction: Reduction
    fusion: Fusion
    target: Literal["fused", "initial", "fixed"]
    scope: str | None
    align: Literal["none", "after"]
    layers: str | None
    floor: PositiveFloat
    normalise: bool | None
    private: Literal["measured", "noised"]

    @model_validator(mode="after")
    def _refuse_a_fixed_target_without_scope(self) -> Wsa:
        if self.target == "fixed" and self.scope is None:
            raise ValueError("target=fixed needs wsa.scope=FILE, a model.safetensors")
        return self


class LocalPrivacy(Section):
    """Each client clips its update and adds noise, before anybody sees it."""

    clipping_norm: PositiveFloat
    epsilon: PositiveFloat


class Privacy(Section):
    """What goes with differential privacy, central (a strategy of Flower's) or local."""

    delta: Annotated[float, Field(gt=0, lt=1)]
    reports: Literal["withheld", "clear"]
    noise: Literal["repeatable", "secret"]
    local: LocalPrivacy | None


class Evaluation(Section):
    """How often the global model is evaluated, in rounds."""

    every: PositiveInt
    clients_every: PositiveInt
    clients_most: PositiveInt
    adapt: NonNegativeInt
    batch_size: PositiveInt
    validation: Annotated[float, Field(ge=0, lt=1)]
    patience: PositiveInt | None
    keep_best: bool

    @model_validator(mode="after")
    def _refuse_choosing_without_validation(self) -> Evaluation:
        if (self.patience or self.keep_best) and not self.validation:
            raise ValueError(
                "patience and keep_best need evaluation.validation, as 0.1: the test set is not "
                "there to choose by"
            )
        return self


class Checkpoint(Section):
    """How often a run leaves a checkpoint, in rounds; null: never."""

    every: PositiveInt | None


class Guard(Section):
    """Which answers count; see :class:`fedwsa.algorithms.guard.guard.Guard`."""

    max_examples: PositiveFloat
    max_norm_ratio: Annotated[float, Field(gt=1)] | None
    max_scope_kl: PositiveFloat | None
    min_results: PositiveFloat
    repeats: Annotated[int, Field(ge=0)]
    below: Literal["stop", "skip"]

    @field_validator("min_results")
    @classmethod
    def _refuse_fractions_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("must be a number of clients, or a share below 1")
        return value


class Runtime(Section):
    """What runs the clients."""

    name: Literal["ray", "flower"]
    workers: PositiveInt | None
    address: str | None
    gpus_per_worker: NonNegativeFloat | None
    cohort: Cohort

    @model_validator(mode="after")
    def _refuse_engine_keys_under_flower(self) -> Runtime:
        if self.name == "flower":
            if self.address is not None:
                raise ValueError("address needs runtime=ray")
            if self.cohort not in ("auto", "off"):
                raise ValueError("cohort needs runtime=ray")
        return self
