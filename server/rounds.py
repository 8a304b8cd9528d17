"""What server and clients say to each other in a round: the strategy's hooks, behind its guard."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedwsa import seeding
from fedwsa.algorithms.guard.gathered import Gathered, Incident, short
from fedwsa.algorithms.guard.guard import Guard
from fedwsa.config.blame import blaming
from fedwsa.schema.config import Config
from fedwsa.simulation.reduce import AveragedReplies
from fedwsa.wire import messages
from fedwsa.wire.names import ADAPT, SERVER_ROUND
from server.adversary import Adversary
from server.marks import Marks
from server.nodes import PartitionGrid

logger = logging.getLogger("fedwsa")

Stage = Literal["train", "evaluate"]
OnEvent = Callable[[Mapping[str, object]], None]
T = TypeVar("T")


class RunError(Exception):
    """The run cannot go on; the message is one line, fit for a person."""


class Conversation:
    """The messages of a run's rounds.

    Parameters
    ----------
    guard
        Around any Flower strategy.
    grid
        The fleet.
    config
        The run.
    marks
        What each message says beside what the strategy does.
    on_event
        Told at once of everything that goes wrong, as ``events.jsonl`` has it.
    """

    def __init__(
        self,
        guard: Guard,
        grid: PartitionGrid,
        config: Config,
        marks: Marks,
        on_event: OnEvent = lambda event: None,
    ) -> None:
        self.strategy = guard.strategy
        self._adversary = Adversary.of(config)
        self._guard, self._grid, self._config = guard, grid, config
        self._marks, self._on_event = marks, on_event

    def client_of(self, node: int) -> int:
        """The client that a node is."""
        return self._grid.client(node)

    def by_client(self, found: Mapping[int, T]) -> dict[int, T]:
        """What is known by node, by client."""
        return {self.client_of(node): value for node, value in found.items()}

    @contextmanager
    def hook(self, name: str, number: int) -> Iterator[None]:
        """Around a call into the strategy: keyed global generators, errors that say where."""
        begin = f"round {number}: {type(self.strategy).__name__}.{name} raised "
        kind = self._config.privacy.noise if name == "aggregate_train" else "repeatable"
        with blaming(RunError, begin), seeding.noise(self._config.seed, kind, name, number):
            yield

    def asked_to_train(
        self, number: int, arrays: ArrayRecord, there: Collection[int]
    ) -> list[Message]:
        """What the strategy asks of a cohort, of the clients that are there."""
        with self._grid.only(there), self.hook("configure_train", number):
            config = _round_config(number)
            asked = list(self.strategy.configure_train(number, arrays, config, self._grid))
        messages.change_contents(asked, self._marks.added_to)
        return asked

    def asked_to_evaluate(
        self, number: int, arrays: ArrayRecord, there: Collection[int], adapt: int = 0
    ) -> list[Message]:
        """What the strategy asks of those that are to evaluate, of some clients.

        Parameters
        ----------
        adapt
            Epochs that they train before, for themselves.
        """
        with self._grid.only(there), self.hook("configure_evaluate", number):
            config = _round_config(number)
            asked = list(self.strategy.configure_evaluate(number, arrays, config, self._grid))
        messages.change_contents(asked, self._marks.added_to)
        if adapt:
            first = ConfigRecord({ADAPT: adapt})
            messages.change_contents(asked, lambda plain: RecordDict({**plain, ADAPT: first}))
        return asked

    def train(
        self, number: int, asked: Sequence[Message], cohort: int, single: bool = False
    ) -> tuple[Gathered, bool]:
        """The answers to a training that count, and whether they are enough to aggregate.

        Parameters
        ----------
        asked
            The messages to those that will answer.
        cohort
            How many were sampled.
        single
            Whether the answer of each client is needed, and no average made at the workers.

        Raises
        ------
        RunError
            If fewer than the guard needs gave a usable answer, and it is to stop then.
        """

        def send(instructions: Sequence[Message]) -> list[Message]:
            instructions = list(instructions) if single else instructions
            if self._adversary is None:
                return self._exchange(instructions, number)
            replies = self._exchange(list(instructions), number)  # a single one of each client
            with blaming(RunError, f"round {number}: attack: ", kinds=False):
                return self._adversary.forged(number, instructions, replies, self.client_of)

        witness = self._witness(number, "train")
        gathered, verdict = self._guard.training(number, asked, send, witness, cohort).run()
        if verdict.then == "stop":
            raise RunError(f"round {number}: {verdict.problem}")
        return gathered, verdict.then == "aggregate"

    def evaluate(self, number: int, asked: Sequence[Message]) -> Gathered:
        """The answers to an evaluation, judged."""
        gathered = self._guard.review(asked, self._exchange(asked, number))
        self._witness(number, "evaluate").lost(gathered.incidents)
        return gathered

    def _exchange(self, instructions: Sequence[Message], number: int) -> list[Message]:
        for message in instructions:
            message.metadata.group_id = str(number)
        replies = self._grid.send_and_receive(instructions, timeout=self._config.clients.timeout)
        return replies if isinstance(replies, AveragedReplies) else list(replies)

    def _witness(self, number: int, stage: Stage) -> _Witness:
        timeout = self._config.clients.timeout
        return _Witness(number, stage, self.client_of, timeout, self._on_event)


def _round_config(number: int) -> ConfigRecord:
    """A record of its own for each hook: strategies write into it."""
    return ConfigRecord({SERVER_ROUND: number})


@dataclass(frozen=True)
class _Witness:
    """Logs what goes wrong in a stage of a round, and tells it to whoever keeps events."""

    number: int
    stage: Stage
    client_of: Callable[[int], int]
    timeout: float | None
    on_event: OnEvent

    def lost(self, incidents: Sequence[Incident]) -> None:
        """What clients did wrong, in their order."""
        for incident in sorted(incidents, key=lambda i: self.client_of(i.node)):
            client, kind = self.client_of(incident.node), incident.kind
            line = short(incident.reason)
            if kind == "missing" and self.timeout is not None:
                line = f"{line} in {self.timeout:g} s"
            where = (self.number, self.stage, client)
            logger.warning("round %d, %s: client %d %s: %s", *where, kind, line)
            if line != incident.reason:
                logger.debug("client %d: %s", client, incident.reason)  # for run.log
            self._event(client, kind, line)

    def round_is(self, kind: Literal["repeated", "skipped", "stopped"], what: str) -> None:
        """What becomes of a whole round."""
        logger.warning("round %d: %s", self.number, what)
        self._event(None, kind, what)

    def _event(self, client: int | None, kind: str, reason: str) -> None:
        keys = ("round", "stage", "client", "kind", "reason")
        values = (self.number, self.stage, client, kind, reason)
        self.on_event(dict(zip(keys, values, strict=True)))
