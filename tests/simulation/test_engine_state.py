"""What a client has to itself, keeps, and is asked by many threads: as in Flower's simulation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from tests.given.engine import pulled, within

pytestmark = pytest.mark.usefixtures("two_workers")


def notebook() -> ClientApp:
    """Notes what it is told in each place that it keeps, and answers with all of them."""
    app = ClientApp()

    @app.query()
    def note(message: Message, context: Context) -> Message:
        told, state = message.content["c"]["n"], context.state
        if "list" not in state:
            state["list"] = MetricRecord({"n": []})
        state["list"]["n"].append(told)
        context.noted = [*getattr(context, "noted", []), told]
        if not hasattr(state, "noted"):
            state.noted = []
        state.noted.append(told)
        context.node_config["noted"] = f"{context.node_config.get('noted', '')}{told}"
        if message.content["c"]["fails"] == "raise":
            raise RuntimeError("after it has noted")
        if message.content["c"]["fails"] == "run_config":
            context.run_config["n"] = told
        answer = MetricRecord({"list": list(state["list"]["n"]), "others": context.noted})
        answer["beside"] = list(state.noted)
        config = ConfigRecord({"node": context.node_config["noted"]})
        return Message(RecordDict({"m": answer, "c": config}), reply_to=message)

    @app.train()
    def change(message: Message, context: Context) -> Message:
        content, own = message.content, context.node_config["partition-id"]
        content["c"]["l"].append(own)
        content["m"]["l"].append(own)
        content["a"]["w"].data = Array(np.full(2, float(own))).data
        content["a"]["v"] = Array(np.full(1, float(own)))
        context.state = RecordDict({"new": ConfigRecord({"own": own})})
        return Message(content, reply_to=message)

    return app


def tell(node: int, number: int, fails: str = "") -> Message:
    content = RecordDict({"c": ConfigRecord({"n": number, "fails": fails})})
    return Message(content, node, "query")


def told(reply: Message) -> list[int]:
    """What the client has noted, the same in all places."""
    noted = reply.content["m"]["list"]
    assert reply.content["m"]["others"] == reply.content["m"]["beside"] == noted
    assert reply.content["c"]["node"] == "".join(map(str, noted))
    return noted


def test_what_is_kept_is_what_the_message_before_left_and_failures_leave_nothing() -> None:
    def body(grid: Grid) -> None:
        for number in (1, 2, 3):
            [reply] = grid.send_and_receive([tell(2, number)])
            assert told(reply) == list(range(1, number + 1))
        for fails in ("raise", "run_config"):
            [failed] = grid.send_and_receive([tell(2, 9, fails)])
            assert failed.has_error()
        ids = list(grid.push_messages([tell(2, 4)]))
        later = [*(tell(2, n) for n in (5, 6)), tell(3, 7)]
        assert [told(r)[-2:] for r in grid.send_and_receive(later)] == [[4, 5], [5, 6], [7]]
        assert told(pulled(grid, ids)[0]) == [1, 2, 3, 4]

    within(notebook(), body, 2, workers=2)


def test_a_checkpoint_is_told_of_what_stands_beside_the_records(caplog) -> None:
    def body(grid: Grid) -> None:
        list(grid.send_and_receive([tell(2, 1)]))
        with caplog.at_level("WARNING", "fedwsa"):
            assert list(grid.client_states()[0]) == ["list"]
        assert "clients keep node_config, noted on their context beside records" in caplog.text

    within(notebook(), body, 1, workers=1)


def test_what_a_client_receives_is_its_own() -> None:
    def body(grid: Grid) -> None:
        arrays = ArrayRecord({"w": Array(np.zeros(2)), "v": Array(np.zeros(1))})
        records = {"c": ConfigRecord({"l": [100]}), "m": MetricRecord({"l": [100]}), "a": arrays}
        content = RecordDict(records)
        nodes = sorted(grid.get_node_ids())
        replies = grid.send_and_receive([Message(content, node, "train") for node in nodes])
        for partition, reply in enumerate(replies):
            assert reply.content["c"]["l"] == reply.content["m"]["l"] == [100, partition]
            assert reply.content["a"]["w"].numpy().tolist() == [partition] * 2
            assert reply.content["a"]["v"].numpy().tolist() == [partition]
        assert content["c"]["l"] == content["m"]["l"] == [100]
        assert content["a"]["w"].numpy().tolist() == [0, 0]
        kept = {p: s["new"]["own"] for p, s in grid.client_states().items()}
        assert kept == {p: p for p in range(6)}

    within(notebook(), body, 6, workers=1)


def test_many_threads_ask_at_once() -> None:
    def body(grid: Grid) -> None:
        def ask(node: int) -> list[list[int]]:
            return [told(*grid.send_and_receive([tell(node, n)])) for n in (1, 2, 3)]

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(ask, sorted(grid.get_node_ids())))
        assert answers == [[[1], [1, 2], [1, 2, 3]]] * 8

    within(notebook(), body, 8, workers=2)


def test_ids_and_nodes_that_are_not_there_give_what_flower_gives() -> None:
    def body(grid: Grid) -> None:
        assert isinstance(grid.get_node_ids(), set)
        assert list(grid.push_messages([tell(99, 1), tell(0, 1)])) == []
        [reply] = grid.send_and_receive([tell(99, 1), tell(2, 1)])
        assert told(reply) == [1]
        ids = list(grid.push_messages([tell(2, 2)]))
        assert told(pulled(grid, ids)[0]) == [1, 2]
        for key in (ids[0], "never"):
            [error] = grid.pull_messages([key])
            assert error.metadata.reply_to_message_id == key
            assert (error.metadata.src_node_id, error.error.code) == (1, 3)
        [error] = grid.send_and_receive([tell(1, 1)])  # the server's own
        assert error.error.code == 5
        message = tell(2, 3)
        list(grid.send_and_receive([message]))
        with pytest.raises(ValueError, match="it was sent before"):
            grid.push_messages([message])

    within(notebook(), body, 1, workers=1)
