"""The settings of initialisation and of learning a learngene, as they stand in ``conf/``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from fedwsa.config.component import Component, Section


class Init(Component):
    """How the model is initialised; keys that are not named here go to the method."""

    file: str | None
    public: Annotated[float, Field(ge=0, lt=1)]

    @property
    def method(self) -> Component:
        """The method alone."""
        return Component.of(self.target, **self.arguments)


class Training(Section):
    """Training in one place, with AdamW."""

    steps: Annotated[int, Field(ge=0)]
    batch_size: PositiveInt
    lr: PositiveFloat
    weight_decay: NonNegativeFloat


class Pretraining(Section):
    """How a learngene is learned from public images, and fitted to them."""

    teacher: str | None
    temperature: PositiveFloat | None
    hard: NonNegativeFloat | None
    teach: Training
    learn: Training
    fit: Training
