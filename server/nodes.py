"""The fleet as the server sees it: nodes by partition, replies in the order of partitions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Protocol, runtime_checkable

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedwsa.config.component import ConfigError
from fedwsa.simulation.numbered import NumberedNodes
from fedwsa.simulation.reduce import AveragedReplies
from fedwsa.wire.content import find_record
from fedwsa.wire.names import DATA_REFERENCE, NUM_EXAMPLES, PARTITION_ID, REFUSED

logger = logging.getLogger("fedwsa")

_SOON = 5.0  # seconds in which a fleet usually is there
_LONGEST = 3600.0  # seconds for an answer, as in Flower's own start; messages live for half a day


@runtime_checkable
class EngineGrid(Protocol):
    """What the grid of our engine can beside Flower's interface; other grids cannot."""

    def report_progress(self, on_progress: Callable[[int, int], None]) -> None:
        """Call this with the number of answers so far, and of messages."""

    def client_states(self) -> dict[int, RecordDict]:
        """What the clients keep, by partition."""

    def restore(self, states: Mapping[int, RecordDict]) -> None:
        """Let the clients keep this, by partition."""


class PartitionGrid(Grid):
    """A Flower Grid whose nodes stand in the order of their partitions.

    Flower's node ids are random and replies come as they finish; sampling from ordered nodes
    and summing ordered replies makes a run repeat. All nodes are awaited, and asked for their
    partition, before anything is sampled: Flower's FedAvg would otherwise draw its first
    cohort from the nodes that happen to be there.

    Parameters
    ----------
    grid : Grid
        Of the runtime.
    count : int
        Nodes to wait for.
    patience : float
        Seconds to wait for them.
    reference : str or None
        What nodes with data of their own are told of the server's, as JSON.

    Attributes
    ----------
    known_partitions : mapping of int to int
        Node id → partition.
    examples : dict of int to int
        Partition → samples, of nodes that say it.

    Raises
    ------
    ConfigError
        If not enough nodes come, one does not answer, or two have the same partition.
    """

    def __init__(
        self, grid: Grid, count: int, patience: float = 600.0, reference: str | None = None
    ) -> None:
        self._grid = grid
        self.examples: dict[int, int] = {}
        # Our engine knows the partitions; of other fleets every node is asked.
        known = getattr(grid, "known_partitions", None)
        self._longest = _LONGEST if known is None else None  # it sees who dies, and waits for none
        found: Mapping[int, int] = known or self._ask(count, patience, reference)
        self.known_partitions = found
        self._nodes = found.nodes if isinstance(found, NumberedNodes) else _in_order(found)
        if len(found) < count:
            raise ConfigError(f"{count - len(found)} of {count} nodes did not answer")

    def _ask(self, count: int, patience: float, reference: str | None) -> dict[int, int]:
        """Wait for the nodes, and ask each for its partition."""
        nodes = self._await_nodes(count, patience)
        told = RecordDict()
        if reference is not None:
            told[DATA_REFERENCE] = ConfigRecord({DATA_REFERENCE: reference})
        queries = [Message(told, node, MessageType.QUERY) for node in nodes]
        found: dict[int, int] = {}
        for reply in self._grid.send_and_receive(queries, timeout=patience):
            node = reply.metadata.src_node_id
            if reply.has_error():
                if reply.error.code == REFUSED:
                    raise ConfigError(f"node {node} cannot take part: {reply.error.reason}")
                raise ConfigError(f"node {node} does not say its partition: {reply.error.reason}")
            answer = find_record(reply.content, PARTITION_ID)
            if answer is None:
                raise ConfigError(f"node {node} does not say its partition")
            found[node] = partition = int(answer[PARTITION_ID])
            if NUM_EXAMPLES in answer:
                self.examples[partition] = int(answer[NUM_EXAMPLES])
        return found

    def _await_nodes(self, count: int, patience: float) -> list[int]:
        start, last = time.monotonic(), None
        while len(nodes := list(self._grid.get_node_ids())) < count:
            waited = time.monotonic() - start
            if waited > patience:
                raise ConfigError(f"only {len(nodes)} of {count} nodes came in {patience:g} s")
            if waited > _SOON and last != len(nodes):
                last = len(nodes)
                logger.info("waiting for nodes: %d of %d are there", last, count)
            time.sleep(0.05)
        return nodes

    def client(self, node_id: int) -> int:
        """The partition of a node; "client" means partition everywhere."""
        return self.known_partitions[node_id]

    @contextmanager
    def only(self, clients: Collection[int]) -> Iterator[None]:
        """Show only these clients to whoever asks for node ids inside: the others are away."""
        everyone, partition = self._nodes, self.known_partitions
        if len(clients) < len(everyone):
            self._nodes = [node for node in everyone if partition[node] in clients]
        try:
            yield
        finally:
            self._nodes = everyone

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes that are there, in the order of their partitions."""
        return list(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes, there or away, in no particular order."""
        return self._grid.get_nodes()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, wait, and return the replies in the order of their partitions.

        Partial averages come in the order in which the grid gives them, their rows sorted. A node
        may vanish: without a timeout an hour is the longest, but for our engine, which replaces
        workers that die.
        """
        limit = self._longest if timeout is None else timeout
        replies = self._grid.send_and_receive(messages, timeout=limit)
        if isinstance(replies, AveragedReplies):
            return AveragedReplies(replies, sorted(replies.rows, key=self._client_of))
        return sorted(replies, key=self._client_of)

    def _client_of(self, reply: Message) -> int:
        # Of a node that nobody knows: last, and for the guard to leave out.
        known = self.known_partitions
        return known.get(reply.metadata.src_node_id, len(known))

    def set_run(self, run: Run) -> None:
        """Set the run of the wrapped grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the wrapped grid."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send without waiting."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch the replies that are there."""
        return self._grid.pull_messages(message_ids)


def _in_order(partitions: Mapping[int, int]) -> Sequence[int]:
    """The nodes in the order of their partitions, which differ."""
    nodes = sorted(partitions, key=lambda node: partitions[node])
    for node, other in pairwise(nodes):
        if partitions[node] == partitions[other]:
            raise ConfigError(f"two nodes have partition {partitions[node]}")
    return nodes
