"""A fleet whose nodes say who they are."""

from __future__ import annotations

from flwr.app import ConfigRecord, Error, Message, RecordDict

from tests.given.fedwsa import Nodes


class PartitionNodes(Nodes):
    """A grid whose nodes answer at once, in the order given, each with its partition."""

    def __init__(self, partitions: dict[int, int | None], late: int = 0) -> None:
        self.partitions, self.late = partitions, late

    def get_node_ids(self):
        # At first not all nodes are there; each look finds one more.
        hidden, self.late = self.late, max(0, self.late - 1)
        return list(self.partitions)[: len(self.partitions) - hidden]

    def send_and_receive(self, messages, *, timeout=None):
        return [self.answer(m) for m in messages]

    def answer(self, message: Message) -> Message:
        partition = self.partitions[message.metadata.dst_node_id]
        if partition is None:
            return Message(Error(2, "no data here"), reply_to=message)
        record = ConfigRecord({"partition-id": partition})
        return Message(RecordDict({"config": record}), reply_to=message)
