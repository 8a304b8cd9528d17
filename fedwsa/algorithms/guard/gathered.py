"""The answers of a cohort, judged: those that count, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import Message, MetricRecord

from fedwsa.simulation.reduce import AveragedReplies
from fedwsa.wire import messages

Kind = Literal["failed", "missing", "rejected"]

_SERVER = 1
"""Node id of Flower's SuperLink."""


@dataclass(frozen=True)
class Incident:
    """Why a client's answer is not in the average.

    Attributes
    ----------
    node : int
        Of the client.
    kind : {"failed", "missing", "rejected"}
        It said that it failed; it gave no answer; it gave one that the guard refused.
    reason : str
        In its words, or in ours.
    """

    node: int
    kind: Kind
    reason: str


@dataclass(frozen=True)
class Gathered:
    """The answers of a cohort, judged.

    Attributes
    ----------
    replies : list of Message
        For the strategy: those that were refused are error replies, which strategies leave out.
    accepted : dict of int to MetricRecord
        The metrics of each usable answer, by node.
    incidents : list of Incident
        What is not usable, of all exchanges.
    asked : int
        How many clients were to answer.
    repeats : int
        How often some were asked again.
    """

    replies: list[Message]
    accepted: Mapping[int, MetricRecord] = field(default_factory=dict)
    incidents: Sequence[Incident] = ()
    asked: int = 0
    repeats: int = 0

    def lost(self) -> dict[int, Incident]:
        """The last incident of each node that was not made good later."""
        return {i.node: i for i in self.incidents if i.node not in self.accepted}

    def reason(self) -> str:
        """The most common reason, without its traceback."""
        reasons = Counter(short(i.reason) for i in self.lost().values())
        return reasons.most_common(1)[0][0] if reasons else "none was asked"

    @property
    def rows(self) -> list[Message]:
        """The answer of each client, also where the replies are averages made at the workers."""
        replies = self.replies
        return replies.rows if isinstance(replies, AveragedReplies) else replies

    def followed_by(self, second: Gathered) -> Gathered:
        """The answers of two exchanges, the second with those who gave none in the first."""
        later = {node_of(reply): reply for reply in second.rows}
        rows = [later.pop(node_of(r), r) for r in self.rows] + list(later.values())
        replies = rows
        if any(isinstance(found.replies, AveragedReplies) for found in (self, second)):
            parts = [r for found in (self, second) for r in found.replies if r.has_content()]
            replies = AveragedReplies(parts + [r for r in rows if r.has_error()], rows)
        return Gathered(
            replies,
            {**self.accepted, **second.accepted},
            [*self.incidents, *second.incidents],
            self.asked,
            self.repeats + 1,
        )


def short(reason: str) -> str:
    """A reason on one line, without its traceback."""
    return " ".join(reason.partition("Traceback (most recent call last)")[0].split())


def from_its_node(reply: Message, asked: Sequence[Message]) -> Message:
    """The reply; one that the server gives for a node that is gone becomes the node's."""
    if reply.metadata.src_node_id != _SERVER or not reply.has_error():
        return reply
    key = reply.metadata.reply_to_message_id
    of = next((m for m in asked if key and m.metadata.message_id == key), None)
    return reply if of is None else Message(reply.error, reply_to=of)


def node_of(reply: Message) -> int:
    """The node that a reply comes from."""
    return reply.metadata.src_node_id


def metrics_of(reply: Message) -> tuple[object, ...]:
    """Name and keys of a reply's metrics, with the lengths of lists."""
    return tuple(
        (name, *sorted((k, len(v) if isinstance(v, list) else -1) for k, v in record.items()))
        for name, record in messages.metric_records(reply.content).items()
    )


def kind_of(reply: Message) -> tuple[tuple[str, ...], tuple[object, ...]]:
    """Names of the records, and the metrics: Flower's strategies want one kind from all."""
    return tuple(sorted(messages.array_records(reply.content))), metrics_of(reply)


def once_more(message: Message) -> Message:
    """The same message again: one is sent only once."""
    return Message(
        message.content,
        message.metadata.dst_node_id,
        message.metadata.message_type,
        group_id=message.metadata.group_id,
    )
