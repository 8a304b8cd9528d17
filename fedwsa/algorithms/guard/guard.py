"""A guard around any Flower strategy: broken, lying and missing clients do no harm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from fedwsa.algorithms.averaging import answers_of, averaged, averages_by, weighs_by
from fedwsa.algorithms.guard.gathered import Gathered, Incident, once_more, short
from fedwsa.algorithms.guard.judge import Judge, in_evaluation, in_training
from fedwsa.algorithms.guard.quorum import Below, Quorum, TooFewResults, Verdict
from fedwsa.algorithms.guard.replies import MOST_EXAMPLES, Rules
from fedwsa.algorithms.privacy import Adaptive, Fixed, is_private
from fedwsa.algorithms.traits import Traits
from fedwsa.algorithms.wrapping import Wrapper, chain
from fedwsa.wire import messages

logger = logging.getLogger("fedwsa")

Send = Callable[[Sequence[Message]], Iterable[Message]]
"""Sends messages, and returns the replies that come."""


class Witness(Protocol):
    """Who is told at once what goes wrong in a training."""

    def lost(self, incidents: Sequence[Incident]) -> None:
        """Be told of answers that do not count."""

    def round_is(self, kind: Literal["repeated", "skipped", "stopped"], what: str) -> None:
        """What becomes of the round as a whole."""


class Guard(Wrapper):
    """Judge what clients answer, before a strategy averages it; go on with those that are usable.

    Refused, whatever the strategy: NaN and infinite values, other names, shapes or dtypes than
    were sent, a number of examples that is not positive or absurd, metrics or records that most
    of the cohort does not have, scopes that are impossible or not those of the arrays they came
    with, a second answer of one node, an answer of a node that was not asked. Flower's own
    strategies average the first, and end the run on the others.

    Stands outermost: ``Guard(FedWSA(SomeDPWrapper(FedAvg())))``. There it sees what was sent, with
    FedWSA's target, and what came back, as it came. It cannot stand inside Flower's privacy
    wrappers, whose accountant wants FedAvg itself within; and in a round without enough answers
    nothing inside moves: neither the target, nor a moment, nor the privacy budget.

    It remembers nothing from round to round.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy of the Message API.
    max_examples : float
        More examples than that are absurd. A client with so many would be the average alone.
    max_norm_ratio : float, optional
        An update whose norm is more than so many times the median of the cohort's is refused. It
        needs the single updates, so nothing is averaged at the workers then. With clients of
        several sizes, norms are root mean squares over the entries. Not with privacy wrappers:
        they clip every update, and who is left out would depend on the data.
    max_scope_kl : float, optional
        A model one of whose layers has a weight scope further than that, in nats, from the
        median of the cohort's is refused. It needs the single models too.
    min_results : float
        The quorum: so many usable answers a round needs; below 1 a share of the cohort.
    repeats : int
        Below the quorum, those who gave no usable answer are asked again, so often at most.
    below : {"stop", "skip"}
        Then the run ends with :class:`~fedwsa.algorithms.guard.quorum.TooFewResults`, or the model
        stays for this round.
    timeout : float, optional
        Seconds that they have when they are asked again. ``Strategy.start`` has its own for the
        first time, an hour by default.
    numbers : sequence of str
        Metrics that each answer to a training must have as numbers.
    scores : sequence of str
        Likewise of an evaluation.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> strategy = Guard(FedAvg(fraction_train=0.1), min_results=0.5, below="skip")
    """

    traits: ClassVar[Traits] = Traits(
        # As the wrapped strategy, unless the single updates must be seen.
        averages_by=lambda g: None if g.compares else averages_by(g.strategy),
        transient=("_training", "_evaluated", "gathered"),  # of a round alone
    )

    def __init__(
        self,
        strategy: Strategy,
        *,
        max_examples: float = MOST_EXAMPLES,
        max_norm_ratio: float | None = None,
        max_scope_kl: float | None = None,
        min_results: float = 1,
        repeats: int = 0,
        below: Below = "stop",
        timeout: float | None = 3600.0,
        numbers: Sequence[str] = (),
        scores: Sequence[str] = (),
    ) -> None:
        if not max_examples > 0:
            raise ValueError(f"max_examples must be above 0; got {max_examples}")
        if max_norm_ratio is not None and not max_norm_ratio > 1:
            raise ValueError(f"max_norm_ratio must be above 1; got {max_norm_ratio}")
        if max_scope_kl is not None and not max_scope_kl > 0:
            raise ValueError(f"max_scope_kl must be above 0; got {max_scope_kl}")
        self.strategy = strategy
        self.max_examples, self.max_norm_ratio = max_examples, max_norm_ratio
        self.max_scope_kl = max_scope_kl
        self.quorum = Quorum(min_results, repeats, below)
        self.timeout, self.numbers, self.scores = timeout, tuple(numbers), tuple(scores)
        if self.compares and is_private(strategy):
            key = "max_scope_kl" if max_norm_ratio is None else "max_norm_ratio"
            raise ValueError(f"{key} does not go with privacy wrappers, which clip every update")
        self._clipped = any(
            isinstance(
                part,
                DifferentialPrivacyServerSideAdaptiveClipping
                | DifferentialPrivacyServerSideFixedClipping,
            )
            for part in chain(strategy)
        )
        self._training: GuardedTraining | None = None
        self._evaluated: list[Message] = []
        self.gathered: Gathered | None = None

    @property
    def compares(self) -> bool:
        """Whether it looks at the models of the cohort side by side."""
        return self.max_norm_ratio is not None or self.max_scope_kl is not None

    def summary(self) -> None:
        """Log the settings, then those of the wrapped strategy."""
        logger.info(
            "\t├──> Guard: at least %g results, %d repeats, then %s; norms %s, scopes %s",
            self.quorum.results,
            self.quorum.repeats,
            self.quorum.below,
            "free" if self.max_norm_ratio is None else f"to {self.max_norm_ratio:g} × median",
            "free" if self.max_scope_kl is None else f"to {self.max_scope_kl:g} nats",
        )
        self.strategy.summary()

    def marked(self, instructions: Iterable[Message]) -> list[Message]:
        """Train messages, which a grid may answer with averages if the strategy allows it."""
        return averaged(self, instructions, self.numbers, self.max_examples)

    # --- Flower's hooks ----------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the wrapped strategy, and keep what it sends, to judge the answers by."""
        asked = list(self.strategy.configure_train(server_round, arrays, config, grid))

        def again(instructions: Sequence[Message]) -> Iterable[Message]:
            return grid.send_and_receive(instructions, timeout=self.timeout)

        self._training = self.training(server_round, asked, again, _Log(server_round))
        return self._training.marked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge the replies, ask again below the quorum, and let the wrapped strategy aggregate.

        Raises
        ------
        TooFewResults
            Below the quorum, with ``below="stop"``.
        RuntimeError
            If no training was configured, whose answers these could be.
        """
        if self._training is None:
            raise RuntimeError("aggregate_train before configure_train: nobody was asked")
        self.gathered, verdict = self._training.conclude(replies)
        if verdict.then == "stop":
            raise TooFewResults(f"round {server_round}: {verdict.problem}")
        if verdict.then == "skip":
            return None, None
        return self.strategy.aggregate_train(server_round, self.gathered.replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the wrapped strategy, and keep what it sends, to judge the answers by."""
        asked = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._evaluated = asked
        return asked

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Judge the replies, and aggregate those of clients that have samples to evaluate on."""
        gathered = self.review(self._evaluated, replies)
        weight = weighs_by(self.strategy)
        empty = {n for n, m in gathered.accepted.items() if not messages.number(m, weight) > 0}
        kept = [r for r in gathered.replies if r.metadata.src_node_id not in empty]
        return self.strategy.aggregate_evaluate(server_round, kept)

    # --- for every loop ----------------------------------------------------------------------

    def training(
        self,
        server_round: int,
        asked: Sequence[Message],
        send: Send,
        witness: Witness,
        cohort: int | None = None,
    ) -> GuardedTraining:
        """A training of those that the wrapped strategy asks.

        Parameters
        ----------
        server_round
            Its number.
        asked
            The messages to those that are to answer.
        send
            The way to them.
        witness
            Is told what goes wrong.
        cohort
            How many were sampled, of which the quorum is counted, if more than are asked.
        """
        count = len(asked) if cohort is None else cohort
        return GuardedTraining(self, server_round, asked, send, witness, count)

    def review(self, asked: Sequence[Message], replies: Iterable[Message]) -> Gathered:
        """Judge the answers to an evaluation."""
        rules = Rules(weighs_by(self.strategy), self.scores, self.max_examples)
        return Judge(in_evaluation(rules)).each(asked, replies)

    @property
    def judge(self) -> Judge:
        """The judge of answers to a training."""
        weight = averages_by(self.strategy) or weighs_by(self.strategy)
        rules = Rules(weight, self.numbers, self.max_examples, answers_of(self.strategy))
        return Judge(in_training(rules, self._clipped), self.max_norm_ratio, self.max_scope_kl)

    def skip(self, server_round: int) -> None:
        """Forget a round that was configured and brings no model."""
        for part in chain(self.strategy):
            # Flower's privacy wrappers hold the event of a release that does not happen.
            if isinstance(part, Fixed | Adaptive):
                getattr(part, "_pending_events", {}).pop(server_round, None)


@dataclass(frozen=True)
class GuardedTraining:
    """One training of a cohort: sent, judged, asked again below the quorum, enough or not.

    Flower's loop sends by itself, between two hooks: :attr:`marked`, then :meth:`conclude`. Ours
    has it all by :meth:`run`.

    Attributes
    ----------
    guard : Guard
    server_round : int
    asked : sequence of Message
        To those that are to answer.
    send : callable
        The way to them.
    witness : Witness
        Is told what goes wrong.
    cohort : int
        How many were sampled.
    """

    guard: Guard
    server_round: int
    asked: Sequence[Message]
    send: Send
    witness: Witness
    cohort: int

    @property
    def marked(self) -> list[Message]:
        """What is sent, marked for a grid that may average the answers."""
        return self.guard.marked(self.asked)

    def run(self) -> tuple[Gathered, Verdict]:
        """Send, and conclude from what comes."""
        marked = self.marked
        return self.conclude(self.send(marked) if marked else [])

    def conclude(self, replies: Iterable[Message]) -> tuple[Gathered, Verdict]:
        """The answers that count, and what becomes of the round; the witness knows then."""
        gathered = self._gathered(replies)
        self.witness.lost(gathered.incidents)
        if gathered.repeats:
            times = "once" if gathered.repeats == 1 else f"{gathered.repeats} times"
            what = f"those without a usable answer were asked again {times}"
            self.witness.round_is("repeated", what)
        verdict = self.guard.quorum.verdict(gathered, self.cohort)
        if verdict.then == "stop":
            self.witness.round_is("stopped", verdict.problem)
        elif verdict.then == "skip":
            self.witness.round_is("skipped", f"{verdict.problem}, the model stays")
            self.guard.skip(self.server_round)
        return gathered, verdict

    def _gathered(self, replies: Iterable[Message]) -> Gathered:
        """The answers, judged; below the quorum, those that are missing a second time."""
        judge, quorum = self.guard.judge, self.guard.quorum
        found = judge.among_each_other(self.asked, judge.each(self.asked, replies))
        while not quorum.is_met(found, self.cohort) and found.repeats < quorum.repeats:
            missing = [m for m in self.asked if m.metadata.dst_node_id not in found.accepted]
            if not missing:  # of simulated devices, the others are away
                break
            fresh = [once_more(message) for message in missing]
            second = judge.each(fresh, self.send(self.guard.marked(fresh)))
            found = judge.among_each_other(self.asked, found.followed_by(second))
        return found


@dataclass(frozen=True)
class _Log:
    """A witness that logs, of rounds that Flower's loop runs."""

    server_round: int

    def lost(self, incidents: Sequence[Incident]) -> None:
        for incident in incidents:
            logger.warning(
                "round %d: node %d %s: %s",
                self.server_round,
                incident.node,
                incident.kind,
                short(incident.reason),
            )

    def round_is(self, kind: Literal["repeated", "skipped", "stopped"], what: str) -> None:
        if kind != "stopped":  # which is raised
            logger.warning("round %d: %s", self.server_round, what)
