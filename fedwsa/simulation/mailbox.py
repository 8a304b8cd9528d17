"""Messages that were sent and the replies to them, fetched by the rules of Flower's simulation."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterable
from datetime import UTC, datetime
from uuid import uuid4

from flwr.app import Error, Message, Metadata

logger = logging.getLogger("fedwsa")

_SERVER = 1  # its node id; it answers no messages
_NO_MESSAGE = Error(3, "the message is not there: its time is over, or its reply was fetched")
_NO_REPLY = Error(4, "the reply is not there: its time is over")
_NO_NODE = Error(5, "the node does not answer")
"""With the codes of Flower's runtimes."""


class Mailbox:
    """What Flower's in-memory LinkState does with messages, for a run.

    A message is there until its reply is fetched, or its time to live is over. One that is not,
    fetched twice or never sent, is answered with an error.

    Parameters
    ----------
    run_id
        Of the run.
    nodes
        Who can get messages.
    """

    def __init__(self, run_id: int, nodes: Container[int]) -> None:
        self._run_id, self._nodes = run_id, nodes
        self._sent: dict[str, Message] = {}  # shells
        self._replies: dict[str, Message] = {}

    def send(self, message: Message) -> bool:
        """Give a message its id; False: it cannot be sent, which is logged.

        Raises
        ------
        ValueError
            If it has been sent before, is a reply or has no time to live.
        """
        metadata = message.metadata
        if metadata.reply_to_message_id or metadata.ttl <= 0 or metadata.delivered_at:
            raise ValueError(
                f"Invalid message to node {metadata.dst_node_id}: it was sent before, is a reply, "
                "or has no time to live; make one for each answer"
            )
        # The field has no public setter; Flower's grids write it in the same way.
        metadata.__dict__["_message_id"] = str(uuid4())
        if _over(message):
            logger.error("a message was not sent: its time to live is over")
            return False
        if metadata.dst_node_id not in self._nodes and metadata.dst_node_id != _SERVER:
            logger.error("a message was not sent: there is no node %d", metadata.dst_node_id)
            return False
        metadata.delivered_at = _now()
        return True

    def register(self, sent: Iterable[Message]) -> None:
        """Wait for the replies to messages."""
        self._sent.update((message.metadata.message_id, message) for message in sent)

    def awaits(self, key: str) -> bool:
        """Whether the reply to a message is still wanted."""
        return key in self._sent and not _over(self._sent[key])

    def is_over(self, key: str) -> bool:
        """Whether the time to live of a message is over."""
        return key not in self._sent or _over(self._sent[key])

    def seconds_left(self, key: str) -> float:
        """Of the time to live of a message whose reply is wanted."""
        return seconds_left(self._sent[key])

    def put(self, key: str, reply: Message) -> None:
        """Keep a reply until it is fetched."""
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        self._replies[key] = reply

    def fetch(self, keys: Iterable[str]) -> list[Message]:
        """Replies that are there, in the order of the ids, and errors for those that never will."""
        fetched = ((key, self._fetch(key)) for key in dict.fromkeys(keys))
        replies = {key: reply for key, reply in fetched if reply is not None}
        self.forget(replies)
        return list(replies.values())

    def forget(self, keys: Iterable[str]) -> None:
        """Wait for these no longer."""
        for key in keys:
            self._sent.pop(key, None)
            self._replies.pop(key, None)

    def _fetch(self, key: str) -> Message | None:
        if self.is_over(key):
            return self._error(_NO_MESSAGE, key, "", "system")
        metadata, reply = self._sent[key].metadata, self._replies.get(key)
        if metadata.dst_node_id != _SERVER and reply is None:
            return None
        if reply is None:
            return self._error(_NO_NODE, key, metadata.group_id, metadata.message_type)
        if _over(reply):
            return self._error(_NO_REPLY, key, metadata.group_id, metadata.message_type)
        reply.metadata.delivered_at = _now()
        return reply

    def _error(self, error: Error, key: str, group: str, kind: str) -> Message:
        """An answer from the server's own node, as Flower gives it."""
        numbers = (self._run_id, str(uuid4()), _SERVER, _SERVER)
        metadata = Metadata(*numbers, key, group, time.time(), 0.0, kind)
        return Message(metadata=metadata, error=error)  # type: ignore[call-overload,no-any-return]


def seconds_left(message: Message) -> float:
    """Seconds that are left of a message's time to live."""
    return message.metadata.created_at + message.metadata.ttl - time.time()


def _over(message: Message) -> bool:
    return seconds_left(message) <= 0


def _now() -> str:
    return datetime.now(UTC).isoformat()
