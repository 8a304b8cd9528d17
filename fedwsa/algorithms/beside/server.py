"""Strategies whose clients keep a model of their own beside the one that they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedwsa.algorithms.memory.server import Remembering
from fedwsa.algorithms.traits import Traits
from fedwsa.wire import messages
from fedwsa.wire.names import NUM_EXAMPLES

Setting = float | int | bool | str | list[str]


class Telling(FedAvg):
    """Federated averaging that tells clients its settings, in training and before evaluations.

    Attributes
    ----------
    settings : str
        Of the record with the settings.
    """

    settings: ClassVar[str]

    @abstractmethod
    def told(self, arrays: ArrayRecord) -> Mapping[str, Setting]:
        """The settings, beside a model."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What FedAvg sends, and the settings."""
        sent = list(super().configure_train(server_round, arrays, config, grid))
        return self._with_settings(sent, arrays)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The same before an evaluation."""
        sent = list(super().configure_evaluate(server_round, arrays, config, grid))
        return self._with_settings(sent, arrays)

    def _with_settings(self, sent: list[Message], arrays: ArrayRecord) -> list[Message]:
        settings = ConfigRecord(dict(self.told(arrays)))
        messages.change_contents(sent, lambda plain: RecordDict({**plain, self.settings: settings}))
        return sent


class Beside(Telling, Remembering):
    """Federated averaging of what clients train together; each keeps a model of its own beside it.

    The global model is tested as usual; the clients' accuracy is that of their own models.
    """

    traits: ClassVar[Traits] = replace(Remembering.traits, averages_by=NUM_EXAMPLES, needs_sgd=True)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and note whose own models are those of this round."""
        return super().aggregate_train(server_round, self.accept(server_round, replies))
