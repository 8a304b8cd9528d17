"""A guard around any Flower strategy: broken, lying and missing clients do no harm."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from fedwsa.algorithms.averaging import answers_of, averaged, averages_by, weighs_by
from fedwsa.algorithms.guard.gathered import (
    Gathered,
    Incident,
    from_its_node,
    kind_of,
    metrics_of,
    node_of,
    once_more,
    short,
)
from fedwsa.algorithms.guard.replies import (
    MOST_EXAMPLES,
    Rules,
    unusable_reply,
    unusable_scores,
    update_size,
)
from fedwsa.algorithms.privacy import Adaptive, Fixed, is_private
from fedwsa.algorithms.traits import Traits
from fedwsa.algorithms.wrapping import Wrapper, chain
from fedwsa.scope.weight_scope import choose
from fedwsa.simulation.reduce import AveragedReplies
from fedwsa.wire import messages

logger = logging.getLogger("fedwsa")

Below = Literal["stop", "skip"]
Exchange = Callable[[Sequence[Message]], Iterable[Message]]

_MEDIAN_OF = 3
"""So many updates at least have a median to compare with."""


class TooFewResults(RuntimeError):
    """A round has fewer usable answers than it needs; the message is one line."""


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
    min_results : float
        The quorum: so many usable answers a round needs; below 1 a share of the cohort.
    repeats : int
        Below the quorum, those who gave no usable answer are asked again, so often at most.
    below : {"stop", "skip"}
        Then the run ends with :class:`TooFewResults`, or the model stays for this round.
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
        averages_by=lambda g: averages_by(g.strategy) if g.max_norm_ratio is None else None,
        transient=("_grid", "_asked", "gathered"),  # of a round alone
    )

    def __init__(
        self,
        strategy: Strategy,
        *,
        max_examples: float = MOST_EXAMPLES,
        max_norm_ratio: float | None = None,
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
        if not min_results > 0 or (min_results > 1 and min_results != int(min_results)):
            raise ValueError(
                f"min_results must be a number of clients, or a share below 1; got {min_results}"
            )
        if repeats < 0:
            raise ValueError(f"repeats must not be negative; got {repeats}")
        self.strategy = strategy
        self.max_examples, self.max_norm_ratio = max_examples, max_norm_ratio
        self.min_results, self.repeats = min_results, repeats
        self.below = choose(Below, below, "below")
        self.timeout, self.numbers, self.scores = timeout, tuple(numbers), tuple(scores)
        if max_norm_ratio is not None and is_private(strategy):
            raise ValueError(
                "max_norm_ratio does not go with privacy wrappers, which clip every update"
            )
        self._clipped = any(
            isinstance(
                part,
                DifferentialPrivacyServerSideAdaptiveClipping
                | DifferentialPrivacyServerSideFixedClipping,
            )
            for part in chain(strategy)
        )
        self._grid: Grid | None = None
        self._asked: dict[str, list[Message]] = {}
        self.gathered: Gathered | None = None

    def summary(self) -> None:
        """Log the settings, then those of the wrapped strategy."""
        logger.info(
            "\t├──> Guard: at least %g results, %d repeats, then %s; norms %s",
            self.min_results,
            self.repeats,
            self.below,
            "free" if self.max_norm_ratio is None else f"to {self.max_norm_ratio:g} × median",
        )
        self.strategy.summary()

    def quorum(self, cohort: int) -> int:
        """How many usable answers a cohort must give."""
        share = self.min_results < 1
        return math.ceil(self.min_results * cohort - 1e-9) if share else int(self.min_results)

    def marked(self, instructions: Iterable[Message]) -> list[Message]:
        """Train messages, which a grid may answer with averages if the strategy allows it."""
        return averaged(self, instructions, self.numbers, self.max_examples)

    # --- Flower's hooks ----------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the wrapped strategy, and keep what it sends, to judge the answers by."""
        asked = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._grid, self._asked["train"] = grid, asked
        return self.marked(asked)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge the replies, ask again below the quorum, and let the wrapped strategy aggregate.

        Raises
        ------
        TooFewResults
            Below the quorum, with ``below="stop"``.
        """
        grid, asked = self._grid, self._asked.get("train", [])

        def again(instructions: Sequence[Message]) -> Iterable[Message]:
            assert grid is not None
            return grid.send_and_receive(instructions, timeout=self.timeout)

        gathered = self.gathered = self.gather(asked, replies, again)
        for incident in gathered.incidents:
            logger.warning(
                "round %d: node %d %s: %s",
                server_round,
                incident.node,
                incident.kind,
                short(incident.reason),
            )
        if problem := self.shortage(gathered, len(asked)):
            if self.below == "stop":
                raise TooFewResults(f"round {server_round}: {problem}")
            logger.warning("round %d: %s; the model stays", server_round, problem)
            self.skip(server_round)
            return None, None
        return self.strategy.aggregate_train(server_round, gathered.replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the wrapped strategy."""
        asked = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._asked["evaluate"] = asked
        return asked

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Judge the replies, and aggregate those of clients that have samples to evaluate on."""
        gathered = self.review(self._asked.get("evaluate", []), replies)
        weight = self._rules("evaluate").weight
        empty = {n for n, m in gathered.accepted.items() if not messages.number(m, weight) > 0}
        kept = [r for r in gathered.replies if r.metadata.src_node_id not in empty]
        return self.strategy.aggregate_evaluate(server_round, kept)

    # --- judging -----------------------------------------------------------------------------

    def gather(
        self,
        asked: Sequence[Message],
        replies: Iterable[Message],
        again: Exchange,
        cohort: int | None = None,
    ) -> Gathered:
        """Judge the answers to a training; below the quorum, get those that are missing again.

        Parameters
        ----------
        asked
            The messages to those that are to answer.
        replies
            What came.
        again
            Sends messages, and returns what comes.
        cohort
            Of which the quorum is counted, if more than were asked.
        """
        needed = self.quorum(len(asked) if cohort is None else cohort)
        found = self._compared(asked, self._judged(asked, replies))
        while asked and len(found.accepted) < needed and found.repeats < self.repeats:
            missing = [m for m in asked if m.metadata.dst_node_id not in found.accepted]
            if not missing:  # of simulated devices, the others are away
                break
            fresh = [once_more(message) for message in missing]
            second = self._judged(fresh, again(self.marked(fresh)))
            found = self._compared(asked, found.followed_by(second))
        found.asked = len(asked)
        return found

    def review(self, asked: Sequence[Message], replies: Iterable[Message]) -> Gathered:
        """Judge the answers to an evaluation."""
        return self._judged(asked, replies, "evaluate")

    def shortage(self, gathered: Gathered, cohort: int) -> str | None:
        """What a person is told where a cohort gave too few usable answers; None if enough."""
        count, needed = len(gathered.accepted), self.quorum(cohort)
        if count >= needed:
            return None
        if not count:
            return f"all {gathered.asked} clients failed in training: {gathered.reason()}"
        why = f"of the others most: {gathered.reason()}"
        if not gathered.lost():  # of simulated devices
            why = "the others do not answer"
        return f"{count} of {cohort} clients gave a usable answer, {needed} are needed; {why}"

    def skip(self, server_round: int) -> None:
        """Forget a round that was configured and brings no model."""
        for part in chain(self.strategy):
            # Flower's privacy wrappers hold the event of a release that does not happen.
            if isinstance(part, Fixed | Adaptive):
                getattr(part, "_pending_events", {}).pop(server_round, None)

    def _rules(self, stage: str) -> Rules:
        usual = weighs_by(self.strategy)
        if stage == "evaluate":
            return Rules(usual, self.scores, self.max_examples)
        weight, answers = averages_by(self.strategy) or usual, answers_of(self.strategy)
        return Rules(weight, self.numbers, self.max_examples, answers)

    def _judged(
        self, asked: Sequence[Message], replies: Iterable[Message], stage: str = "train"
    ) -> Gathered:
        """Each answer by itself; those that were averaged at the workers were judged there."""
        at_workers = isinstance(replies, AveragedReplies)
        rows = replies.rows if isinstance(replies, AveragedReplies) else list(replies)
        sent, rules = {m.metadata.dst_node_id: m for m in asked}, self._rules(stage)
        found, kept, heard = Gathered([]), [], set()
        for reply in (from_its_node(row, asked) for row in rows):
            node = reply.metadata.src_node_id
            if node not in sent or node in heard:
                why = "a second answer" if node in heard else "the node was not asked"
                logger.warning("an answer of node %d is left out: %s", node, why)
                continue
            heard.add(node)
            if reply.has_error():
                judged = reply.error.code == messages.UNUSABLE_REPLY
                reason = reply.error.reason or "no reason given"
                found.incidents.append(Incident(node, "rejected" if judged else "failed", reason))
            elif problem := None if at_workers else self._problem(reply, sent[node], rules, stage):
                found.incidents.append(Incident(node, "rejected", problem))
                reply = _refused(sent[node], problem)
            else:
                [found.accepted[node]] = messages.reply_metrics([reply])
            kept.append(reply)
        found.incidents += [
            Incident(node, "missing", "no answer") for node in sent if node not in heard
        ]
        found.replies = AveragedReplies(replies, kept) if at_workers else kept
        return found

    def _problem(self, reply: Message, sent: Message, rules: Rules, stage: str) -> str | None:
        if stage == "evaluate":
            return unusable_scores(reply.content, rules)
        problem = unusable_reply(reply.content, sent.content, rules)
        return self._unclippable(reply, sent) if problem is None and self._clipped else problem

    def _unclippable(self, reply: Message, sent: Message) -> str | None:
        """Why Flower cannot clip a usable update; None if it can.

        It pairs arrays by their order, whatever their names, and divides by the norm.
        """
        given, expected = (messages.model_arrays(m.content) for m in (reply, sent))
        if given is None or expected is None or list(given) != list(expected):
            return "its arrays stand in another order, and cannot be clipped"
        if not update_size(reply.content, sent.content):
            return "an update of zero cannot be clipped"
        return None

    def _compared(self, asked: Sequence[Message], found: Gathered) -> Gathered:
        """The answers among each other: what the metrics are, how far the updates go."""
        sent = {m.metadata.dst_node_id: m for m in asked}
        rows = found.rows
        kinds = {r.metadata.src_node_id: kind_of(r) for r in rows if r.has_content()}
        if not kinds:
            return found
        [(usual, _)] = Counter(kinds.values()).most_common(1)
        problems = {
            node: "its records or metrics are not those of the other clients"
            for node, kind in kinds.items()
            if kind != usual
        }
        if self.max_norm_ratio is not None:
            problems |= self._outliers([r for r in rows if kinds.get(node_of(r)) == usual], sent)
        if not problems:
            return found
        judged = [
            _refused(sent[node_of(r)], problems[node_of(r)]) if node_of(r) in problems else r
            for r in rows
        ]
        if isinstance(found.replies, AveragedReplies):
            # A worker averages answers of one kind alone.
            parts = [r for r in found.replies if r.has_content() and metrics_of(r) == usual[1]]
            judged_replies: list[Message] = AveragedReplies(
                parts + [r for r in judged if r.has_error()], judged
            )
        else:
            judged_replies = judged
        incidents = [Incident(node, "rejected", why) for node, why in problems.items()]
        accepted = {n: m for n, m in found.accepted.items() if n not in problems}
        return Gathered(
            judged_replies, accepted, found.incidents + incidents, repeats=found.repeats
        )

    def _outliers(self, replies: Sequence[Message], sent: Mapping[int, Message]) -> dict[int, str]:
        assert self.max_norm_ratio is not None
        sizes = {node_of(r): update_size(r.content, sent[node_of(r)].content) for r in replies}
        median = float(np.median(list(sizes.values()))) if sizes else 0.0
        if len(sizes) < _MEDIAN_OF or not median:
            return {}
        return {
            node: f"its update is {size / median:.3g} times as long as the median"
            for node, size in sizes.items()
            if size > self.max_norm_ratio * median
        }


def _refused(sent: Message, problem: str) -> Message:
    return Message(Error(messages.UNUSABLE_REPLY, problem), reply_to=sent)
