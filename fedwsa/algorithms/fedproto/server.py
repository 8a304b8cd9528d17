"""FedProto, the server half of :class:`fedwsa.algorithms.fedproto.client.Prototypes`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.beside.server import Setting, Telling
from fedwsa.algorithms.fedproto.client import COUNTS, MEANS, PROTOTYPES, Prototypes
from fedwsa.algorithms.memory.server import Remembering
from fedwsa.algorithms.moon.client import require_classifier
from fedwsa.algorithms.personal.local import LocalOnly
from fedwsa.algorithms.run_facts import RunFacts, require_no_noise
from fedwsa.algorithms.sizes.layout import Shapes
from fedwsa.algorithms.sizes.server import SizedFedAvg
from fedwsa.algorithms.traits import Traits
from fedwsa.config.blame import blaming
from fedwsa.config.component import ConfigError
from fedwsa.models import blank_inputs
from fedwsa.models.representation import Tap
from fedwsa.wire import messages
from fedwsa.wire.names import ARRAYS, PERSONAL


class FedProto(Telling, Remembering, SizedFedAvg):
    """Clients share the mean representation of each class, and keep their models.

    These may be of several sizes, as long as what goes into their classifiers has as many entries.

    Source: FedProto: Federated Prototype Learning across Heterogeneous Clients, arXiv 2105.00243.

    Parameters
    ----------
    shapes
        Size → name of an array → its shape.
    pull
        λ, of the distance to the prototypes; 0 is training alone.
    sampling
        As for Flower's FedAvg.
    """

    settings: ClassVar[str] = Prototypes.settings
    traits: ClassVar[Traits] = replace(
        LocalOnly.traits,
        wants=("shapes",),
        transient=SizedFedAvg.traits.transient,
        objectives=(Prototypes,),
    )

    def __init__(
        self, shapes: Shapes, *, pull: NonNegativeFloat, **sampling: Unpack[Sampling]
    ) -> None:
        if pull < 0:
            raise ValueError(f"pull must be zero or above; got {pull}")
        # No array is shared, so that none must fit into another's.
        SizedFedAvg.__init__(self, shapes, own="", class_rows=False, **sampling)
        self.accepted: dict[int, int] = {}
        self.pull = pull
        self.prototypes: dict[str, Tensor] = {}

    def require(self, run: RunFacts) -> None:
        """Refuse a private run, models without a linear layer that answers, and unlike prototypes.

        Raises
        ------
        ConfigError
            Also where the model, which is asked for an answer, raises anything.
        """
        require_no_noise(self, run)
        entries: dict[str, int] = {}
        for size, model in run.models.items():
            inputs = blank_inputs(run.example_shape, 2)
            with blaming(ConfigError, "strategy: FedProto: ", kinds=False):
                require_classifier(model, inputs)
                entries[size] = _entries(model, inputs)
        if len({*entries.values()}) > 1:
            told = ", ".join(f"{count} in {size}" for size, count in entries.items())
            raise ConfigError(
                f"clients.sizes: FedProto compares what goes into the classifiers, {told}; take "
                "sizes that differ before that, as sizes.S='{depth: 1, width: 1.0}'"
            )

    def told(self, arrays: ArrayRecord) -> Mapping[str, Setting]:
        """λ."""
        return {"pull": float(self.pull)}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send what a client begins with, and the prototypes, once there are any."""
        sent = _kept(super().configure_train(server_round, arrays, config, grid))
        if self.prototypes:
            record = messages.to_arrays(self.prototypes)
            messages.change_contents(sent, lambda p: RecordDict({**p, PROTOTYPES: record}))
        return sent

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send what a client begins with."""
        return _kept(super().configure_evaluate(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the prototypes of each class over its samples at all clients."""
        given = [r for r in self.accept(server_round, replies) if r.has_content()]
        records = [reply.content.pop(PROTOTYPES, None) for reply in given]
        told = [messages.to_tensors(r) for r in records if isinstance(r, ArrayRecord)]
        self.prototypes = _merged(self.prototypes, told)
        if not given:
            return None, None
        contents = [reply.content for reply in given]
        return self._arrays, self.train_metrics_aggr_fn(contents, self.weighted_by_key)


def _kept(configured: Iterable[Message]) -> list[Message]:
    """Messages whose model stays with their client, who begins with it."""
    sent = list(configured)

    def change(plain: RecordDict) -> RecordDict:
        return RecordDict({**plain, ARRAYS: ArrayRecord(), PERSONAL: plain[ARRAYS]})

    messages.change_contents(sent, change)
    return sent


def _entries(model: nn.Module, inputs: Tensor) -> int:
    """How many numbers go into the classifier for a sample."""
    mode = model.training
    with torch.no_grad(), Tap(model) as tap:
        model.eval()(inputs)
        model.train(mode)
        found = tap.take()
    assert found is not None  # it has a classifier
    return found.shape[-1]


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
