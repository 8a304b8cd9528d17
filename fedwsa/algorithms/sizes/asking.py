"""Where nobody else knows the sizes of nodes, they are asked."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedwsa.wire.content import find_record
from fedwsa.wire.names import SIZE

_PATIENCE = 120.0  # seconds that a node has to say its size


def said_sizes(nodes: Iterable[int], grid: Grid) -> dict[int, str]:
    """Node → the size that it answers a QUERY message with; those that say none are left out."""
    queries = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
    said = {}
    for reply in grid.send_and_receive(queries, timeout=_PATIENCE) if queries else []:
        answer = find_record(reply.content, SIZE) if reply.has_content() else None
        if answer is not None:
            said[reply.metadata.src_node_id] = str(answer[SIZE])
    return said
