"""The round loop: a strategy's four hooks behind its guard, and everything counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedwsa import seeding
from fedwsa.algorithms.guard.gathered import Incident, short
from fedwsa.algorithms.guard.guard import Guard
from fedwsa.algorithms.wsa.server import FedWSA, ScopeReport
from fedwsa.config.blame import blaming
from fedwsa.data.evaluation import Score, jain_index
from fedwsa.fleet.size_rules import WHOLE
from fedwsa.models import exchange
from fedwsa.schema.config import Config
from fedwsa.simulation.reduce import AveragedReplies
from fedwsa.wire import messages
from server.nodes import PartitionGrid
from server.systems import Costs, Systems

logger = logging.getLogger("fedwsa")


class RunError(Exception):
    """The run cannot go on; the message is one line, fit for a person."""


@dataclass(frozen=True)
class ClientScores:
    """Accuracy of the global model on the clients' own hold-outs."""

    mean: float
    worst10: float
    std: float
    jain: float

    @classmethod
    def of(cls, accuracies: Sequence[float]) -> ClientScores:
        """Over clients: mean, mean of the worst tenth (at least one), deviation, Jain index."""
        ordered = sorted(accuracies)
        tenth = ordered[: -(-len(ordered) // 10)]
        return cls(
            float(np.mean(ordered)),
            float(np.mean(tenth)),
            float(np.std(ordered)),
            jain_index(ordered),
        )


@dataclass
class RoundRecord:
    """What happened in one round.

    Attributes
    ----------
    round : int
        From 1.
    cohort : list of int
        Clients that were asked to train.
    dropped, late : list of int
        Those of them that gave no answer, and that the deadline hit; see
        :class:`server.systems.Plan`.
    failed : list of int
        Those that should have answered, but whose answer is not in the average.
    rejected : list of int
        Those of them that gave an answer which the guard refused.
    failed_evaluation : list of int
        Clients that failed to evaluate.
    train_loss : float or None
        The clients' mean task loss.
    score : Score or None
        The global model on the global test set, in rounds that evaluate it; with several sizes
        that of the largest. None where each client has a model of its own.
    sizes : dict of str to Score
        The model of each size on it, then.
    validation : Score or None
        The global model on the validation split, then, if there is one.
    clients : ClientScores or None
        The global model on the clients' hold-outs, in rounds that evaluate it.
    scopes : ScopeReport or None
        What FedWSA measured.
    answers : dict of int to MetricRecord
        What each client reported of its training, of those that did not fail.
    evaluations : dict of int to MetricRecord
        Likewise of its evaluation, in rounds that have one.
    costs : Costs or None
        What the training took of the simulated devices; None: it did not happen on them.
    epsilon : float or None
        What differential privacy has cost so far; None: the run has none, or it is not known.
    moved : bool
        Whether the round brought a model.
    arrays : ArrayRecord or None
        The global model after the round.
    last : bool
        Whether it is the last one of the run.
    seconds : dict
        Wall time of the phases ``train``, ``aggregate``, ``evaluate``.
    """

    round: int
    cohort: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    failed_evaluation: list[int] = field(default_factory=list)
    train_loss: float | None = None
    score: Score | None = None
    sizes: dict[str, Score] = field(default_factory=dict)
    validation: Score | None = None
    clients: ClientScores | None = None
    scopes: ScopeReport | None = None
    answers: dict[int, MetricRecord] = field(default_factory=dict)
    evaluations: dict[int, MetricRecord] = field(default_factory=dict)
    costs: Costs | None = None
    epsilon: float | None = None
    moved: bool = False
    arrays: ArrayRecord | None = None
    last: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


class RoundLoop:
    """Runs a strategy over the clients of a grid.

    Parameters
    ----------
    guard
        Around any Flower strategy.
    grid
        The fleet.
    arrays
        The initial model.
    config
        The run.
    score
        Scores the arrays of a round on the global test set: the model of each size, the largest
        first.
    systems
        The simulated devices; None: everybody is there and answers.
    validate
        Scores them on the validation split.
    is_over
        Says after a round was scored whether it is the last.
    on_event
        Told at once of everything that goes wrong, as ``events.jsonl`` has it.
    """

    def __init__(
        self,
        guard: Guard,
        grid: PartitionGrid,
        arrays: ArrayRecord,
        config: Config,
        score: Callable[[ArrayRecord, int], dict[str, Score]],
        systems: Systems | None = None,
        validate: Callable[[ArrayRecord, int], Score] | None = None,
        is_over: Callable[[RoundRecord], bool] | None = None,
        on_event: Callable[[Mapping[str, object]], None] = lambda event: None,
    ) -> None:
        self.guard, self.strategy = guard, guard.strategy
        self.grid = grid
        self.arrays = arrays
        self.config = config
        self.score = score
        self.systems = systems
        self.validate = validate
        self.is_over = is_over
        self.on_event = on_event
        self.staying: Mapping[str, str] = {}  # size → marks, see SizedModels.marks
        self.data_told: dict[str, str] = {}  # by which clients know their data, or the server's
        self._reference = messages.to_tensors(arrays)

    def run(self, number: int) -> RoundRecord:
        """Run one round; :attr:`arrays` is the new global model afterwards.

        Raises
        ------
        RunError
            If fewer clients gave a usable answer than the guard needs, and it is to stop then; or
            the aggregate is not finite.
        """
        record = RoundRecord(number)
        self._train(record)
        record.arrays, record.last = self.arrays, number == self.config.rounds
        start = time.perf_counter()
        if record.last or number % self.config.evaluation.every == 0:
            record.sizes = self.score(self.arrays, number)
            record.score = next(iter(record.sizes.values()), None)
            if self.validate is not None:
                record.validation = self.validate(self.arrays, number)
        if self.is_over is not None and self.is_over(record):
            record.last = True
        due = record.last or number % self.config.evaluation.clients_every == 0
        if due and not self.config.withheld:  # their accuracies are releases, too
            self._evaluate_clients(record)
        record.seconds["evaluate"] = time.perf_counter() - start
        return record

    def _train(self, record: RoundRecord) -> None:
        number, start = record.round, time.perf_counter()
        instructions, systems, client_of = self._configure(number), self.systems, self.grid.client
        record.cohort = sorted(client_of(m.metadata.dst_node_id) for m in instructions)
        plan = systems.plan(number, instructions, client_of) if systems else None
        if plan is not None:
            instructions, record.dropped, record.late = plan.sent, plan.dropped, plan.late
        training = self.guard.training(
            number,
            instructions,
            lambda messages: self._exchange(messages, number),
            _Witness(number, "train", client_of, self.config.clients.timeout, self.on_event),
            len(record.cohort),
        )
        gathered, verdict = training.run()
        record.answers = self._by_client(gathered.accepted)
        lost = {client_of(node): i for node, i in gathered.lost().items()}
        record.failed = sorted(lost)
        record.rejected = sorted(k for k, i in lost.items() if i.kind == "rejected")
        if systems and plan is not None:
            record.costs = systems.costs(plan, gathered.replies, record.answers, client_of)
        record.seconds["train"] = time.perf_counter() - start
        if verdict.then == "stop":
            raise RunError(f"round {number}: {verdict.problem}")
        start = time.perf_counter()
        if verdict.then == "aggregate":
            self._aggregate(record, gathered.replies)
        record.seconds["aggregate"] = time.perf_counter() - start

    def _configure(self, number: int) -> list[Message]:
        """What the strategy asks of the clients that are there."""
        there = range(self.config.clients.count)
        with (
            self.grid.only(there if self.systems is None else self.systems.there(number)),
            self._hook("configure_train", number),
        ):
            config = self._round_config(number)
            asked = list(self.guard.configure_train(number, self.arrays, config, self.grid))
        messages.change_contents(asked, self._with_marks)
        return asked

    def _with_marks(self, content: RecordDict) -> RecordDict:
        """A content that says what the data are, and the tensors that do not travel."""
        for name, record in content.config_records.items():
            if messages.SERVER_ROUND not in record:
                continue
            marks = self.staying.get(str(record.get(messages.SIZE, WHOLE)), "{}")
            added = self.data_told | ({} if marks == "{}" else {messages.STAYING: marks})
            return RecordDict({**content, name: ConfigRecord({**record, **added})})
        return content

    def _aggregate(self, record: RoundRecord, replies: list[Message]) -> None:
        number, usable = record.round, record.answers
        if not self.config.withheld:
            told = usable.values()
            losses = np.array([messages.number(m, messages.TRAIN_LOSS) for m in told])
            examples = np.array([messages.number(m, messages.NUM_EXAMPLES) for m in told])
            record.train_loss = float(losses @ examples / examples.sum())
        with self._hook("aggregate_train", number):
            arrays, _ = self.strategy.aggregate_train(number, replies)
        if arrays is None:
            logger.warning("round %d: the strategy returned no model, the old one stays", number)
        elif not isinstance(arrays, ArrayRecord):
            where = f"round {number}: {type(self.strategy).__name__}.aggregate_train"
            raise RunError(f"{where} must return an ArrayRecord, not a {type(arrays).__name__}")
        else:
            self.arrays = self._accepted(arrays, number)
            record.moved = True
            if isinstance(self.strategy, FedWSA):
                record.scopes = self.strategy.report

    def _accepted(self, arrays: ArrayRecord, number: int) -> ArrayRecord:
        """The aggregate in the model's dtypes, if it is one of the model's at all."""
        if problem := exchange.unusable(messages.to_tensors(arrays), self._reference):
            name = type(self.strategy).__name__
            raise RunError(f"round {number}: the model that {name} returned is unusable: {problem}")
        return messages.cast_like(arrays, self._reference)

    @contextmanager
    def _hook(self, name: str, number: int) -> Iterator[None]:
        """Around a call into the strategy: keyed global generators, errors that say where."""
        begin = f"round {number}: {type(self.strategy).__name__}.{name} raised "
        kind = self.config.privacy.noise if name == "aggregate_train" else "repeatable"
        with blaming(RunError, begin), seeding.noise(self.config.seed, kind, name, number):
            yield

    def _evaluate_clients(self, record: RoundRecord) -> None:
        number = record.round
        with self._hook("configure_evaluate", number):
            instructions = list(
                self.strategy.configure_evaluate(
                    number, self.arrays, self._round_config(number), self.grid
                )
            )
        messages.change_contents(instructions, self._with_marks)
        replies = self._exchange(instructions, number)
        gathered = self.guard.review(instructions, replies)
        record.evaluations = self._by_client(gathered.accepted)
        record.failed_evaluation = sorted(self.grid.client(node) for node in gathered.lost())
        client_of, timeout = self.grid.client, self.config.clients.timeout
        witness = _Witness(number, "evaluate", client_of, timeout, self.on_event)
        witness.lost(gathered.incidents)
        replies = gathered.replies
        held_out = [r for r in replies if r.has_content() and _examples(r) > 0]
        if not held_out:
            return
        record.clients = ClientScores.of(
            [messages.number(m, messages.ACCURACY) for m in messages.reply_metrics(held_out)]
        )
        with self._hook("aggregate_evaluate", number):
            self.strategy.aggregate_evaluate(number, held_out)

    def _round_config(self, number: int) -> ConfigRecord:
        """A record of its own for each round: strategies write into it."""
        return ConfigRecord({messages.SERVER_ROUND: number})

    def _exchange(self, instructions: Sequence[Message], number: int) -> list[Message]:
        for message in instructions:
            message.metadata.group_id = str(number)
        replies = self.grid.send_and_receive(instructions, timeout=self.config.clients.timeout)
        return replies if isinstance(replies, AveragedReplies) else list(replies)

    def _by_client(self, found: Mapping[int, MetricRecord]) -> dict[int, MetricRecord]:
        return {self.grid.client(node): metrics for node, metrics in found.items()}


@dataclass(frozen=True)
class _Witness:
    """Logs what goes wrong in a stage of a round, and tells it to whoever keeps events."""

    number: int
    stage: Literal["train", "evaluate"]
    client_of: Callable[[int], int]
    timeout: float | None
    on_event: Callable[[Mapping[str, object]], None]

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


def _examples(reply: Message) -> float:
    return messages.number(messages.reply_metrics([reply])[0], messages.NUM_EXAMPLES)
