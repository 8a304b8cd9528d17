"""Those who wait for answers: by pushing and pulling, in vain, with many, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedwsa.algorithms.averaging import averaged
from fedwsa.simulation import CohortApp, CohortReply
from tests.given.engine import within

NEVER = 600  # seconds: who is asked to sleep is ended before


pytestmark = pytest.mark.usefixtures("two_workers")


def query(node: int, ttl: float | None = None, **config: Any) -> Message:
    return Message(RecordDict({"c": ConfigRecord(config)}), node, "query", ttl=ttl)


def obedient() -> ClientApp:
    """Does what the message says, and counts how often it has done so."""
    app = ClientApp()
    given: list[RecordDict] = []  # in this process

    @app.query()
    def do(message: Message, context: Context) -> Message:
        config = message.content["c"]
        count = context.state.get("n", {"n": 0})["n"] + 1
        context.state["n"] = MetricRecord({"n": count})
        if "interrupt" in config:
            os.kill(config["interrupt"], signal.SIGINT)
        time.sleep(config.get("sleep", 0))
        for content in given:  # what was answered for other clients
            content["c"]["l"].append(-1)
            content["m"]["n"] = -1
            content["a"]["w"] = Array(np.full(2, -1.0))
        arrays = ArrayRecord({"w": Array(np.full(2, float(count)))})
        numbers = list(config.get("l", []))
        records = {"c": ConfigRecord({"l": numbers}), "m": MetricRecord({"n": count}), "a": arrays}
        given.append(RecordDict(records))
        return Message(given[-1], reply_to=message)

    return app


def counts(replies: list[Message]) -> list[int]:
    return [reply.content["m"]["n"] for reply in replies]


def after(grid: Any, most: int) -> Event:
    """Set when so many messages are settled, without a look at the grid."""
    event, settled, deliver = Event(), [], grid._pool.deliver

    def count(finished: object) -> None:
        deliver(finished)
        settled.append(finished)
        if len(settled) == most:
            event.set()

    grid._pool.deliver = count
    return event


def test_what_was_pushed_is_answered_while_the_server_does_something_else() -> None:
    def body(grid: Grid) -> None:
        event = after(grid, 12)
        ids = [*grid.push_messages(query(2 + i) for i in range(6))]
        ids += grid.push_messages(query(2 + i) for i in range(6))
        # More than there are workers: the later ones start without being asked for.
        assert event.wait(120)
        assert counts(list(grid.pull_messages(ids))) == [1] * 6 + [2] * 6

    within(obedient(), body, 6, workers=2)


def test_a_message_that_outlives_its_time_is_an_error_and_leaves_nothing() -> None:
    def body(grid: Grid) -> None:
        assert counts(list(grid.send_and_receive([query(2), query(3)]))) == [1, 1]
        late, answered = grid.send_and_receive([query(2, 1.0, sleep=NEVER), query(3)])
        assert late.error.code == 3
        assert late.metadata.src_node_id == 1  # from the server's own node, as in Flower
        assert counts([answered]) == [2]
        assert counts(list(grid.send_and_receive([query(2)]))) == [2]

    within(obedient(), body, 2, workers=2)


def test_what_is_changed_after_it_was_sent_or_answered_does_not_show() -> None:
    def body(grid: Grid) -> None:
        messages = [query(2 + i, l=[i]) for i in range(6)]
        event = after(grid, 6)
        ids = list(grid.push_messages(messages))
        for message in messages:
            message.content["c"]["l"].append(9)
            message.content["new"] = ConfigRecord()
        assert event.wait(120)
        replies = list(grid.pull_messages(ids))
        assert [reply.content["c"]["l"] for reply in replies] == [[i] for i in range(6)]
        assert counts(replies) == [1] * 6
        assert [reply.content["a"]["w"].numpy().tolist() for reply in replies] == [[1.0, 1.0]] * 6

    within(obedient(), body, 6, workers=1)  # one process answers all


def test_all_who_wait_learn_why_nothing_will_come() -> None:
    def body(grid: Any) -> None:
        def fail(finished: object) -> None:
            raise ZeroDivisionError("in the pool's thread")

        grid._pool.deliver = fail

        def ask(message: Message) -> BaseException | None:
            with pytest.raises(RuntimeError, match="the simulation is over") as caught:
                grid.send_and_receive([message])
            return caught.value.__cause__

        with ThreadPoolExecutor(3) as threads:
            causes = list(threads.map(ask, [query(2, sleep=NEVER), query(3), query(4)]))
        asked: list[Callable[[], object]] = [
            lambda: grid.push_messages([query(2)]),
            lambda: grid.pull_messages(["any"]),
        ]
        for ask_again in asked:
            with pytest.raises(RuntimeError, match="the simulation is over") as caught:
                ask_again()
            causes.append(caught.value.__cause__)
        assert {str(cause) for cause in causes} == {"in the pool's thread"}

    within(obedient(), body, 3, workers=2)


def test_ctrl_c_reaches_who_waits_and_ends_those_who_work() -> None:
    def body(grid: Grid) -> None:
        list(grid.send_and_receive([query(2, interrupt=os.getpid(), sleep=NEVER), query(3)]))
        raise AssertionError("it waits for ever")

    with pytest.raises(KeyboardInterrupt):
        within(obedient(), body, 2, workers=2)

    def again(grid: Grid) -> None:  # there are places for new ones
        assert counts(list(grid.send_and_receive([query(2), query(3)]))) == [1, 1]

    within(obedient(), again, 2, workers=2)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("in_one_piece", [False, True])
def test_a_cohort_may_be_told_different_things(
    average: bool, in_one_piece: bool, tmp_path: Path
) -> None:
    alone, app = ClientApp(), CohortApp()

    @app.train()
    @alone.train()
    def train(message: Message, context: Context) -> Message:
        rate = message.content["c"]["rate"]
        arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + rate)})
        metrics = MetricRecord({"num-examples": int(context.node_config["partition-id"]) + 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.cohort
    def together(messages: list[Message], contexts: list[Context]) -> list[Message] | CohortReply:
        with (tmp_path / "calls").open("a") as file:
            file.write(f"{len(messages)} ")
        each = [train(m, c) for m, c in zip(messages, contexts, strict=True)]
        if not in_one_piece:
            return each
        arrays = np.stack([reply.content["arrays"]["w"].numpy() for reply in each])
        return CohortReply({"w": arrays}, [dict(reply.content["metrics"]) for reply in each])

    def body(grid: Grid) -> None:
        arrays = ArrayRecord({"w": Array(np.full(2, 1.0, np.float32))})
        told = {2: ConfigRecord({"rate": 10.0}), 3: ConfigRecord({"rate": 40.0})}
        contents = {node: RecordDict({"arrays": arrays, "c": c}) for node, c in told.items()}
        sent = [Message(content, node, "train") for node, content in contents.items()]
        replies = grid.send_and_receive(averaged(FedAvg(), sent) if average else sent)
        assert len(list(replies)) == (1 if average else 2)
        mean, _ = FedAvg().aggregate_train(1, list(replies))
        # (1 · (1 + 10) + 2 · (1 + 40)) / 3
        assert mean["w"].numpy().tolist() == [31.0, 31.0]

    within(app, body, 2, workers=1, work=[0, 0], cohort=2)  # one job
    assert (tmp_path / "calls").read_text().split() == ["2"]
