"""The round loop: a strategy's four hooks, with bad replies left out and everything counted."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedwsa import messages, seeding
from fedwsa.config import Config
from fedwsa.evaluation import Score, jain_index
from fedwsa.strategies.averaging import AveragedReplies, averaged
from fedwsa.strategies.fedwsa import FedWSA, ScopeReport
from server.nodes import PartitionGrid
from server.systems import Costs, Systems

logger = logging.getLogger("fedwsa")


class RunError(RuntimeError):
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
    moved: bool = False
    arrays: ArrayRecord | None = None
    last: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


class RoundLoop:
    """Runs a strategy over the clients of a grid.

    Parameters
    ----------
    strategy
        Any Flower strategy.
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
    """

    def __init__(
        self,
        strategy: Strategy,
        grid: PartitionGrid,
        arrays: ArrayRecord,
        config: Config,
        score: Callable[[ArrayRecord, int], dict[str, Score]],
        systems: Systems | None = None,
        validate: Callable[[ArrayRecord, int], Score] | None = None,
        is_over: Callable[[RoundRecord], bool] | None = None,
    ) -> None:
        self.strategy = strategy
        self.grid = grid
        self.arrays = arrays
        self.config = config
        self.score = score
        self.systems = systems
        self.validate = validate
        self.is_over = is_over
        self._reference = messages.to_tensors(arrays)
        self._reasons: list[str] = []  # why clients failed, in the last exchange

    def run(self, number: int) -> RoundRecord:
        """Run one round; :attr:`arrays` is the new global model afterwards.

        Raises
        ------
        RunError
            If no client that should have given a usable answer did, or the aggregate is not
            finite.
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
        if record.last or number % self.config.evaluation.clients_every == 0:
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
        marked = averaged(self.strategy, instructions, [messages.TRAIN_LOSS])
        replies = self._exchange(marked, number) if marked else []
        usable, record.failed = self._filter(replies, instructions, "train", number)
        record.answers = usable
        if systems and plan is not None:
            record.costs = systems.costs(plan, replies, usable, client_of)
        record.seconds["train"] = time.perf_counter() - start
        start = time.perf_counter()
        if not usable and (instructions or not record.cohort):
            [(reason, _)] = Counter(self._reasons).most_common(1) or [("none was asked", 0)]
            raise RunError(
                f"round {number}: all {len(instructions)} clients failed in training: {reason}"
            )
        if usable:
            self._aggregate(record, replies)
        else:
            logger.warning("round %d: no client of the cohort answers, the model stays", number)
        record.seconds["aggregate"] = time.perf_counter() - start

    def _configure(self, number: int) -> list[Message]:
        """What the strategy asks of the clients that are there."""
        there = range(self.config.clients.count)
        with (
            self.grid.only(there if self.systems is None else self.systems.there(number)),
            self._hook("configure_train", number),
        ):
            config = self._round_config(number)
            return list(self.strategy.configure_train(number, self.arrays, config, self.grid))

    def _aggregate(self, record: RoundRecord, replies: list[Message]) -> None:
        number, usable = record.round, record.answers
        losses = np.array([messages.number(m, messages.TRAIN_LOSS) for m in usable.values()])
        examples = np.array([messages.number(m, messages.NUM_EXAMPLES) for m in usable.values()])
        record.train_loss = float(losses @ examples / examples.sum())
        with self._hook("aggregate_train", number):
            arrays, _ = self.strategy.aggregate_train(number, replies)
        if arrays is None:
            logger.warning("round %d: the strategy returned no model, the old one stays", number)
        else:
            self.arrays = self._accepted(arrays, number)
            record.moved = True
            if isinstance(self.strategy, FedWSA):
                record.scopes = self.strategy.report

    def _accepted(self, arrays: ArrayRecord, number: int) -> ArrayRecord:
        """The aggregate in the model's dtypes, if it is one of the model's at all."""
        if problem := messages.unusable(messages.to_tensors(arrays), self._reference):
            name = type(self.strategy).__name__
            raise RunError(f"round {number}: the model that {name} returned is unusable: {problem}")
        return messages.cast_like(arrays, self._reference)

    @contextmanager
    def _hook(self, name: str, number: int) -> Iterator[None]:
        """Around a call into the strategy: keyed global generators, errors that say where."""
        try:
            with seeding.seeded(self.config.seed, name, number):
                yield
        except Exception as error:
            where = f"round {number}: {type(self.strategy).__name__}.{name}"
            raise RunError(f"{where} raised {type(error).__name__}: {error}") from error

    def _evaluate_clients(self, record: RoundRecord) -> None:
        number = record.round
        with self._hook("configure_evaluate", number):
            instructions = list(
                self.strategy.configure_evaluate(
                    number, self.arrays, self._round_config(number), self.grid
                )
            )
        replies = self._exchange(instructions, number)
        usable, record.failed_evaluation = self._filter(replies, instructions, "evaluate", number)
        record.evaluations = usable
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

    def _filter(
        self,
        replies: list[Message],
        instructions: Sequence[Message],
        stage: str,
        number: int,
    ) -> tuple[dict[int, MetricRecord], list[int]]:
        """Turn replies that cannot be averaged into errors, in place; name all that failed.

        Flower's strategies average NaN silently, and a wrong shape ends their run; an error
        reply they leave out. What a client answers must look like what it was sent, which may
        differ from client to client. Replies that were averaged where the clients are were
        checked there.

        Returns
        -------
        dict of int to MetricRecord, list of int
            The metrics of the clients with usable replies, and the clients that failed.
        """
        rows = replies.rows if isinstance(replies, AveragedReplies) else replies
        checks = stage == "train" and rows is replies
        scores = [messages.TRAIN_LOSS] if stage == "train" else [messages.LOSS, messages.ACCURACY]
        sent = {m.metadata.dst_node_id: m for m in instructions}
        reasons: dict[int, str] = {}
        usable = {}
        for i, reply in enumerate(rows):
            node = reply.metadata.src_node_id
            client, model = self.grid.client(node), self._sent(sent[node]) if checks else None
            if reply.has_error():
                reasons[client] = reply.error.reason or "no reason given"
            elif problem := messages.unusable_reply(reply.content, scores, model=model):
                reasons[client] = problem
                rows[i] = Message(Error(messages.UNUSABLE_REPLY, problem), reply_to=sent[node])
            else:
                [usable[client]] = messages.reply_metrics([reply])
        answered = {reply.metadata.src_node_id for reply in rows}
        for message in instructions:
            node = message.metadata.dst_node_id
            if node not in answered:
                timeout = self.config.clients.timeout
                late = "" if timeout is None else f" in {timeout:g} s"
                reasons[self.grid.client(node)] = f"no answer{late}"
        self._reasons = []
        for client, reason in sorted(reasons.items()):
            line, where, traceback = reason.partition("Traceback (most recent call last)")
            line = " ".join(line.split())
            self._reasons.append(line)
            logger.warning("round %d, %s: client %d failed: %s", number, stage, client, line)
            if where:
                logger.debug("client %d: %s", client, where + traceback)  # for run.log
        return usable, sorted(reasons)

    def _sent(self, instruction: Message) -> dict[str, Tensor]:
        """The arrays that a client was sent."""
        arrays = messages.model_arrays(instruction.content)
        return self._reference if arrays is None else messages.to_tensors(arrays)


def _examples(reply: Message) -> float:
    return messages.number(messages.reply_metrics([reply])[0], messages.NUM_EXAMPLES)
