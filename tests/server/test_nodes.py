"""The fleet as the server sees it: waiting, mapping nodes to partitions, ordering replies."""

from __future__ import annotations

import pytest
from flwr.app import Message, MessageType, RecordDict

from fedwsa.config.component import ConfigError
from server.nodes import PartitionGrid
from tests.given.nodes import PartitionNodes

pytestmark = pytest.mark.usefixtures("task_identity")


def test_nodes_are_awaited_and_stand_in_the_order_of_their_partitions() -> None:
    grid = PartitionGrid(PartitionNodes({77: 2, 5: 0, 31: 1}, late=2), 3)
    assert grid.get_node_ids() == [5, 31, 77]
    assert [grid.client(node) for node in (77, 5, 31)] == [2, 0, 1]


def test_replies_come_in_the_order_of_partitions() -> None:
    grid = PartitionGrid(PartitionNodes({77: 2, 5: 0, 31: 1}), 3)
    sent = [Message(RecordDict(), node, MessageType.QUERY) for node in (77, 31, 5)]
    replies = grid.send_and_receive(sent)
    assert [r.metadata.src_node_id for r in replies] == [5, 31, 77]


def test_a_node_that_vanishes_is_not_waited_for_without_end() -> None:
    asked = []

    class Vanishing(PartitionNodes):
        def send_and_receive(self, messages, *, timeout=None):
            asked.append(timeout)
            return super().send_and_receive(messages, timeout=timeout)

    grid = PartitionGrid(Vanishing({5: 0}), 1, patience=7.0)
    for timeout in (None, 20.0):
        grid.send_and_receive([Message(RecordDict(), 5, MessageType.QUERY)], timeout=timeout)
    assert asked == [7.0, 3600.0, 20.0]
    ours = Vanishing({5: 0})
    ours.known_partitions = {5: 0}
    PartitionGrid(ours, 1).send_and_receive([Message(RecordDict(), 5, MessageType.QUERY)])
    assert asked[-1] is None  # our engine replaces workers that die


@pytest.mark.parametrize(
    ("partitions", "count", "message"),
    [
        ({1: 0, 2: 0}, 2, "two nodes have partition 0"),
        ({1: 0, 2: None}, 2, "node 2 does not say its partition: no data here"),
        ({1: 0}, 2, r"only 1 of 2 nodes came in 0\.2 s"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(partitions, count, message) -> None:
    with pytest.raises(ConfigError, match=message):
        PartitionGrid(PartitionNodes(partitions), count, patience=0.2)
