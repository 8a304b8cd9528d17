"""How the server distils models of several sizes, on the public examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax

from fedwsa.algorithms.feddf.server import Distilling
from fedwsa.config.component import ConfigError
from fedwsa.data.evaluation import measure_statistics
from fedwsa.data.federated import FederatedData
from fedwsa.learngene.fit import Lesson, Recipe, fit
from fedwsa.models import exchange, state
from fedwsa.models.attributes import copied
from fedwsa.schema.config import Config
from fedwsa.scope.moments import precise


@dataclass(frozen=True, eq=False)
class EnsembleDistillation:
    """Distils the mean answer of several networks into others, without any label.

    Attributes
    ----------
    config : Config
        The run.
    data : FederatedData
        With public examples.
    models : mapping of str to Module
        Size → its network; copies are used.
    device : str
    """

    config: Config
    data: FederatedData
    models: Mapping[str, nn.Module]
    device: str

    def __call__(
        self,
        students: Mapping[str, Mapping[str, Tensor]],
        teachers: Sequence[tuple[str, Mapping[str, Tensor]]],
        number: int,
        how: Distilling,
    ) -> dict[str, dict[str, Tensor]]:
        """The students after their training, by size: what travels of them.

        Parameters
        ----------
        students
            Size → what its network begins with.
        teachers
            Size and weights of each.
        number
            Of the round.
        """
        public = self.data.whole.train[self.data.public]
        if public.labels.dim() > 1:
            raise ConfigError("strategy: FedDF distils answers to one question an example, no text")
        answers = torch.stack([self._answers(*teacher, public.inputs) for teacher in teachers])
        wanted = softmax(answers.mean(0) / how.temperature, 1)

        def loss(inputs: Tensor, logits: Tensor, numbers: Tensor) -> Tensor:
            given = log_softmax(precise(logits) / how.temperature, 1)
            return how.temperature**2 * kl_div(given, wanted[numbers], reduction="batchmean")

        numbered = replace(public, labels=torch.arange(len(public)))
        recipe = Recipe(how.steps, how.batch_size, how.lr, weight_decay=0.0, warmup=0.0)
        lesson = Lesson(numbered, self.data.whole, self.device, self.config.seed)
        made = {}
        for size, tensors in students.items():
            own = self._loaded(size, tensors)
            moving = [p for p in own.parameters() if p.requires_grad]
            purpose = f"distillation {number} {size}"
            fit(own, lesson, recipe, purpose=purpose, loss=loss, parameters=moving)
            made[size] = {k: t.cpu() for k, t in exchange.travelling_state(own).items()}
        return made

    def _loaded(self, size: str, tensors: Mapping[str, Tensor]) -> nn.Module:
        own = copied(self.models[size]).to(self.device)
        exchange.load_travelling(own, tensors)
        return own

    @torch.no_grad()
    def _answers(self, size: str, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """What a teacher says of each public example: ``(N, C)``."""
        own = self._loaded(size, tensors)
        prepare = self.data.whole.prepare
        if state.measured(own):
            measure_statistics(own, inputs, prepare, self.device)
        own.eval()
        parts = torch.split(inputs, self.config.evaluation.batch_size)
        return torch.cat([precise(own(prepare(part.to(self.device)))) for part in parts])
