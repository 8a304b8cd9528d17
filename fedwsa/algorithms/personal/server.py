"""Strategies that leave a part of the model with each client."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.memory.server import Remembering
from fedwsa.algorithms.run_facts import RunFacts, require_no_noise
from fedwsa.algorithms.traits import Traits
from fedwsa.wire import messages
from fedwsa.wire.names import PERSONAL

_SHOWN = 8  # names of arrays, in an error


class Personal(Remembering):
    """Federated averaging of a part of the model; the other arrays never leave their client.

    Clients are sent the personal arrays too, as the run begins with them, for those that have
    none of their own yet. There is no global model to test: the clients' accuracy on their own
    data counts.

    Parameters
    ----------
    is_personal
        Tells by the name of an array whether it stays with the clients.
    sampling
        As for Flower's FedAvg.
    """

    traits: ClassVar[Traits] = replace(
        Remembering.traits, has_global_model=False, whole_models=False, requires=True
    )

    def __init__(self, is_personal: Callable[[str], bool], **sampling: Unpack[Sampling]) -> None:
        super().__init__(**sampling)
        self.is_personal = is_personal
        self._personal: ArrayRecord | None = None

    def require(self, run: RunFacts) -> None:
        """Refuse a pattern that leaves nothing or everything with the clients, and a private run.

        Raises
        ------
        ValueError
            Names the arrays that there are.
        """
        names = [name for of in run.shapes.values() for name in of]
        own = [name for name in names if self.is_personal(name)]
        if not own:
            few = names if len(names) <= _SHOWN else [*names[: _SHOWN - 2], "...", names[-1]]
            raise ValueError(
                f"strategy.args.personal: matches no array; there are {', '.join(few)}"
            )
        if len(own) == len(names):
            raise ValueError(
                "strategy.args.personal: leaves everything with the clients; that is strategy=local"
            )
        require_no_noise(self, run)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send what is shared, with the beginning of what is not."""
        shared = self._split(arrays)
        return self._with_personal(super().configure_train(server_round, shared, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The same for evaluation."""
        shared = self._split(arrays)
        return self._with_personal(super().configure_evaluate(server_round, shared, config, grid))

    def _split(self, arrays: ArrayRecord) -> ArrayRecord:
        """What is shared of the arrays; the rest is kept."""
        if self._personal is None:
            own = {k: array for k, array in arrays.items() if self.is_personal(k)}
            if not own:
                raise ValueError("no array of the model is personal")
            self._personal = ArrayRecord(own)
        return ArrayRecord({k: array for k, array in arrays.items() if k not in self._personal})

    def _with_personal(self, configured: Iterable[Message]) -> list[Message]:
        sent, record = list(configured), self._personal
        assert record is not None
        messages.change_contents(sent, lambda plain: RecordDict({**plain, PERSONAL: record}))
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what is shared."""
        given = self.accept(server_round, replies)
        shared, metrics = super().aggregate_train(server_round, given)
        if shared is None or self._personal is None:
            return shared, metrics
        return ArrayRecord({**shared, **self._personal}), metrics


def matcher(pattern: str) -> Callable[[str], bool]:
    """Tells whether a name begins with what a regular expression describes.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return lambda name: wanted.match(name) is not None
