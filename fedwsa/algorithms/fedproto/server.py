"""FedProto, the server half of :class:`fedwsa.algorithms.fedproto.client.Prototypes`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from pydantic import NonNegativeFloat
from torch import Tensor

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.beside.server import Setting, Telling
from fedwsa.algorithms.fedproto.client import COUNTS, MEANS, PROTOTYPES, Prototypes
from fedwsa.algorithms.moon.client import require_classifier
from fedwsa.algorithms.personal.local import LocalOnly
from fedwsa.algorithms.run_facts import RunFacts
from fedwsa.algorithms.traits import Traits
from fedwsa.config.blame import blaming
from fedwsa.config.component import ConfigError
from fedwsa.models import blank_inputs
from fedwsa.wire import messages


class FedProto(Telling, LocalOnly):
    """Clients share the mean representation of each class, and keep their models.

    Source: FedProto: Federated Prototype Learning across Heterogeneous Clients, arXiv 2105.00243.

    Parameters
    ----------
    pull
        λ, of the distance to the prototypes; 0 is training alone.
    sampling
        As for Flower's FedAvg.
    """

    settings: ClassVar[str] = Prototypes.settings
    traits: ClassVar[Traits] = replace(LocalOnly.traits, objectives=(Prototypes,))

    def __init__(self, *, pull: NonNegativeFloat, **sampling: Unpack[Sampling]) -> None:
        if pull < 0:
            raise ValueError(f"pull must be zero or above; got {pull}")
        super().__init__(**sampling)
        self.pull = pull
        self.prototypes: dict[str, Tensor] = {}

    def require(self, run: RunFacts) -> None:
        """Refuse a private run, and a model without a linear layer that answers.

        Raises
        ------
        ConfigError
            Also where the model, which is asked for an answer, raises anything.
        """
        super().require(run)
        for model in run.models.values():
            with blaming(ConfigError, "strategy: FedProto: ", kinds=False):
                require_classifier(model, blank_inputs(run.example_shape, 2))

    def told(self, arrays: ArrayRecord) -> Mapping[str, Setting]:
        """λ."""
        return {"pull": float(self.pull)}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the prototypes, once there are any."""
        sent = list(super().configure_train(server_round, arrays, config, grid))
        if self.prototypes:
            record = messages.to_arrays(self.prototypes)
            messages.change_contents(sent, lambda p: RecordDict({**p, PROTOTYPES: record}))
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the prototypes of each class over its samples at all clients."""
        given = list(replies)
        records = [r.content.pop(PROTOTYPES, None) for r in given if r.has_content()]
        told = [messages.to_tensors(r) for r in records if isinstance(r, ArrayRecord)]
        self.prototypes = _merged(self.prototypes, told)
        return super().aggregate_train(server_round, given)


def _merged(before: dict[str, Tensor], told: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The prototypes by what clients told in a round; of classes that none has, as before.

    What does not look like that of the most is left out.
    """
    usable = [t for t in told if _usable(t)]
    if not usable:
        return before
    counts = torch.stack([t[COUNTS] for t in usable])
    means = torch.stack([t[MEANS] for t in usable])
    total = counts.sum(0)
    mean = (means * counts[:, :, None]).sum(0) / total.clamp(min=1)[:, None]
    if before:
        mean = torch.where(total[:, None] > 0, mean, before[MEANS])
        total = torch.where(total > 0, total, before[COUNTS])
    return {MEANS: mean, COUNTS: total}


def _usable(told: Mapping[str, Tensor]) -> bool:
    """Whether prototypes are numbers, with counts that may be."""
    if told.keys() != {MEANS, COUNTS}:
        return False
    return all(bool(t.isfinite().all()) for t in told.values()) and bool((told[COUNTS] >= 0).all())
