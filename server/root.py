"""What the server would make of the model itself, from the public examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fedwsa.data.federated import FederatedData
from fedwsa.learngene.fit import Lesson, Recipe, fit
from fedwsa.models import exchange
from fedwsa.models.attributes import copied
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.config import Config


@dataclass(frozen=True, eq=False)
class RootTraining:
    """Trains a model as a client would, by SGD on the public examples.

    Attributes
    ----------
    config : Config
        The run.
    data : FederatedData
        With public examples.
    model : Module
        The run's network; a copy of it is trained.
    device : str
    """

    config: Config
    data: FederatedData
    model: nn.Module
    device: str

    def __call__(self, tensors: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """The model of a round, trained: what travels of it."""
        local, usual = self.config.local, Conditions.usual(self.config.local)
        public = self.data.whole.train[self.data.public]
        own = copied(self.model).to(self.device)
        exchange.load_travelling(own, tensors)
        steps = local.epochs * math.ceil(len(public) / local.batch_size)
        recipe = Recipe(
            steps,
            local.batch_size,
            usual.lr * self.config.rate(number),
            usual.weight_decay,
            cosine=False,
            warmup=0.0,
            augment=self.config.dataset.augment,
            momentum=local.momentum,
        )
        lesson = Lesson(public, self.data.whole, self.device, self.config.seed)
        trained = [p for p in own.parameters() if p.requires_grad]
        fit(own, lesson, recipe, purpose=f"root {number}", parameters=trained)
        return {name: t.cpu() for name, t in exchange.travelling_state(own).items()}
