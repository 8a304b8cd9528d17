"""Strategies whose clients keep something that must fit what the server has of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.traits import Traits
from fedwsa.simulation.reduce import AveragedReplies
from fedwsa.wire.names import ACCEPTED_ROUND, LOST_MEMORY


class Remembering(FedAvg):
    """FedAvg that names to each client the last round whose answer it accepted from it.

    A client goes back to what it kept after that round (:mod:`fedwsa.algorithms.memory.client`), so
    that an answer that was refused, came late or was lost leaves no trace at either side. Accepted
    is what :meth:`accept` was handed: what a guard refuses never gets there.

    Parameters
    ----------
    sampling
        As for Flower's FedAvg.

    Attributes
    ----------
    accepted : dict of int to int
        Node → the last round whose answer was accepted; a part of the strategy's memory.
    """

    traits: ClassVar[Traits] = Traits(clients_remember=True)

    def __init__(self, **sampling: Unpack[Sampling]) -> None:
        super().__init__(**sampling)
        self.accepted: dict[int, int] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What FedAvg sends, with each client's last accepted round (0: none)."""
        return self._named(super().configure_train(server_round, arrays, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The same for evaluation."""
        return self._named(super().configure_evaluate(server_round, arrays, config, grid))

    def accept(self, server_round: int, replies: Iterable[Message]) -> list[Message]:
        """Note who gave an answer that counts; return the replies, of each client the first.

        A subclass asks it before it aggregates.
        """
        rows = replies.rows if isinstance(replies, AveragedReplies) else list(replies)
        given: dict[int, Message] = {}
        for reply in rows:
            node = reply.metadata.src_node_id
            if node not in given or (given[node].has_error() and reply.has_content()):
                given[node] = reply
        self.accepted |= {node: server_round for node, r in given.items() if r.has_content()}
        if lost := [node for node, reply in given.items() if _has_lost(reply)]:
            self.forget(lost)
        return list(replies) if isinstance(replies, AveragedReplies) else list(given.values())

    def forget(self, nodes: Sequence[int]) -> None:
        """Let clients begin anew that have lost what they kept, as a node that was restarted.

        Where the server's memory is a sum over what clients keep, it cannot take out what one has
        lost: such a strategy lets all begin anew, and its answers of this round are not accepted.
        """
        self.accepted = {node: r for node, r in self.accepted.items() if node not in nodes}

    def _named(self, configured: Iterable[Message]) -> list[Message]:
        """The messages with their receivers' rounds; one content for those that are alike."""
        sent = list(configured)
        contents: dict[tuple[int, int], tuple[RecordDict, RecordDict]] = {}  # holds the plain one
        for message in sent:
            plain = message.content
            accepted = self.accepted.get(message.metadata.dst_node_id, 0)
            if (id(plain), accepted) not in contents:
                config = plain.config_records[self.configrecord_key]
                named = ConfigRecord({**config, ACCEPTED_ROUND: accepted})
                own = RecordDict({**plain, self.configrecord_key: named})
                contents[id(plain), accepted] = plain, own
            message.content = contents[id(plain), accepted][1]
        return sent


def _has_lost(reply: Message) -> bool:
    return reply.has_error() and reply.error.code == LOST_MEMORY
