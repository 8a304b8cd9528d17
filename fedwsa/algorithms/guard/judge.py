"""Which answers of a cohort are usable: each by itself, then all of them among each other."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Error, Message, MetricRecord

from fedwsa.algorithms.guard.apart import scopes_apart
from fedwsa.algorithms.guard.gathered import (
    Gathered,
    Incident,
    from_its_node,
    kind_of,
    metrics_of,
    node_of,
)
from fedwsa.algorithms.guard.replies import Rules, unusable_reply, unusable_scores, update_size
from fedwsa.simulation.reduce import AveragedReplies
from fedwsa.wire import messages
from fedwsa.wire.names import UNUSABLE_REPLY

logger = logging.getLogger("fedwsa")

Problem = Callable[[Message, Message], str | None]
"""Why a reply to a message is not usable by itself; None if it is."""

_MEDIAN_OF = 3
"""So many updates at least have a median to compare with."""


@dataclass(frozen=True)
class Judge:
    """Judges the answers to one stage's messages.

    Attributes
    ----------
    problem : callable
        What is wrong with a single answer: :func:`in_training`, :func:`in_evaluation`.
    max_norm_ratio : float or None
        So many times as long as the median an update may be; None: any length.
    max_scope_kl : float or None
        So far from the cohort's median the scope of a layer may be, in nats; None: anywhere.
    """

    problem: Problem
    max_norm_ratio: float | None = None
    max_scope_kl: float | None = None

    def each(self, asked: Sequence[Message], replies: Iterable[Message]) -> Gathered:
        """Each answer by itself; those that were averaged at the workers were judged there."""
        at_workers = isinstance(replies, AveragedReplies)
        rows = replies.rows if isinstance(replies, AveragedReplies) else list(replies)
        sent = {m.metadata.dst_node_id: m for m in asked}
        kept: list[Message] = []
        accepted: dict[int, MetricRecord] = {}
        incidents: list[Incident] = []
        heard: set[int] = set()
        for reply in (from_its_node(row, asked) for row in rows):
            node = node_of(reply)
            if node not in sent or node in heard:
                why = "a second answer" if node in heard else "the node was not asked"
                logger.warning("an answer of node %d is left out: %s", node, why)
                continue
            heard.add(node)
            if reply.has_error():
                judged = reply.error.code == UNUSABLE_REPLY
                reason = reply.error.reason or "no reason given"
                incidents.append(Incident(node, "rejected" if judged else "failed", reason))
            elif problem := None if at_workers else self.problem(reply, sent[node]):
                incidents.append(Incident(node, "rejected", problem))
                reply = _refused(sent[node], problem)
            else:
                [accepted[node]] = messages.reply_metrics([reply])
            kept.append(reply)
        incidents += [Incident(node, "missing", "no answer") for node in sent if node not in heard]
        judged_replies = AveragedReplies(replies, kept) if at_workers else kept
        return Gathered(judged_replies, accepted, incidents, len(asked))

    def among_each_other(self, asked: Sequence[Message], found: Gathered) -> Gathered:
        """What most of the cohort answers like: the same metrics, updates of about that length."""
        sent = {m.metadata.dst_node_id: m for m in asked}
        rows = found.rows
        kinds = {node_of(r): kind_of(r) for r in rows if r.has_content()}
        if not kinds:
            return found
        [(usual, _)] = Counter(kinds.values()).most_common(1)
        problems = {
            node: "its records or metrics are not those of the other clients"
            for node, kind in kinds.items()
            if kind != usual
        }
        problems |= self._outliers([r for r in rows if kinds.get(node_of(r)) == usual], sent)
        if not problems:
            return found
        judged = [
            _refused(sent[node_of(r)], problems[node_of(r)]) if node_of(r) in problems else r
            for r in rows
        ]
        replies: list[Message] = judged
        if isinstance(found.replies, AveragedReplies):
            # A worker averages answers of one kind alone.
            parts = [r for r in found.replies if r.has_content() and metrics_of(r) == usual[1]]
            replies = AveragedReplies(parts + [r for r in judged if r.has_error()], judged)
        incidents = [Incident(node, "rejected", why) for node, why in problems.items()]
        accepted = {n: m for n, m in found.accepted.items() if n not in problems}
        incidents = [*found.incidents, *incidents]
        return Gathered(replies, accepted, incidents, found.asked, found.repeats)

    def _outliers(self, replies: Sequence[Message], sent: Mapping[int, Message]) -> dict[int, str]:
        """Updates that are too long, and models whose scopes are too far off, by node."""
        return self._apart(replies) | self._too_long(replies, sent)

    def _apart(self, replies: Sequence[Message]) -> dict[int, str]:
        if self.max_scope_kl is None or len(replies) < _MEDIAN_OF:
            return {}
        found = scopes_apart([reply.content for reply in replies])
        return {
            node_of(reply): f"the scope of {layer} is {apart:.3g} nats from the cohort's median"
            for reply, (layer, apart) in zip(replies, found, strict=True)
            if not apart <= self.max_scope_kl
        }

    def _too_long(self, replies: Sequence[Message], sent: Mapping[int, Message]) -> dict[int, str]:
        if self.max_norm_ratio is None:
            return {}
        sizes = {node_of(r): update_size(r.content, sent[node_of(r)].content) for r in replies}
        median = float(np.median(list(sizes.values()))) if sizes else 0.0
        if len(sizes) < _MEDIAN_OF or not median:
            return {}
        return {
            node: f"its update is {size / median:.3g} times as long as the median"
            for node, size in sizes.items()
            if size > self.max_norm_ratio * median
        }


def in_training(rules: Rules, clipped: bool) -> Problem:
    """What is wrong with an answer to a training.

    Parameters
    ----------
    rules
        What it must have.
    clipped
        Whether one of Flower's privacy wrappers clips the updates, at the server.
    """

    def problem(reply: Message, sent: Message) -> str | None:
        why = unusable_reply(reply.content, sent.content, rules)
        return _unclippable(reply, sent) if why is None and clipped else why

    return problem


def in_evaluation(rules: Rules) -> Problem:
    """What is wrong with an answer to an evaluation."""
    return lambda reply, sent: unusable_scores(reply.content, rules)


def _unclippable(reply: Message, sent: Message) -> str | None:
    """Why Flower cannot clip a usable update; None if it can.

    It pairs arrays by their order, whatever their names, and divides by the norm.
    """
    given, expected = (messages.model_arrays(m.content) for m in (reply, sent))
    if given is None or expected is None or list(given) != list(expected):
        return "its arrays stand in another order, and cannot be clipped"
    if not update_size(reply.content, sent.content):
        return "an update of zero cannot be clipped"
    return None


def _refused(sent: Message, problem: str) -> Message:
    return Message(Error(UNUSABLE_REPLY, problem), reply_to=sent)
