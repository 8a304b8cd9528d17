"""The engine with small apps of a stranger's: what arrives, what is averaged, what is kept."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import (
    ConfigRecord,
    Context,
    Message,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedwsa.algorithms.averaging import averaged
from fedwsa.simulation import CohortApp, CohortReply
from fedwsa.simulation.reduce import AveragedReplies
from tests.given.engine import (
    CLIENTS,
    client_app,
    instructions,
    pulled,
    sized_instructions,
    weights,
    within,
)

pytestmark = pytest.mark.usefixtures("two_workers")


def test_all_answer_in_the_order_of_the_messages_and_do_not_see_each_other() -> None:
    def body(grid: Grid) -> None:
        sent = instructions(grid)[::-1]
        replies = list(grid.send_and_receive(sent))
        assert weights(replies) == {i: float(i) for i in range(CLIENTS)}
        for message, reply in zip(sent, replies, strict=True):
            assert reply.metadata.reply_to_message_id == message.metadata.message_id
            assert reply.metadata.src_node_id == message.metadata.dst_node_id
        assert sent[0].content["arrays"]["w"].numpy().tolist() == [0.0] * 3
        assert len(list(grid.get_nodes())) == CLIENTS

    within(client_app(), body)


def test_messages_of_different_content_each_reach_their_own() -> None:
    def body(grid: Grid) -> None:
        sent = [instructions(grid, 10.0 * i)[i] for i in range(CLIENTS)]
        assert weights(grid.send_and_receive(sent)) == {i: 11.0 * i for i in range(CLIENTS)}

    within(client_app(), body)


def test_push_and_pull_work_without_waiting() -> None:
    def body(grid: Grid) -> None:
        ids = list(grid.push_messages(instructions(grid)))
        assert len(set(ids)) == CLIENTS
        assert weights(pulled(grid, ids)) == {i: float(i) for i in range(CLIENTS)}

    within(client_app(), body)


def test_the_same_message_twice_in_a_call_is_refused() -> None:
    def body(grid: Grid) -> None:
        [first, *_] = instructions(grid)
        with pytest.raises(ValueError, match="the same Message stands twice in one call"):
            grid.send_and_receive([first, first])

    within(client_app(), body)


def test_an_exchange_whose_time_is_over_leaves_alone_what_was_pushed() -> None:
    def sleep(partition: int, context: Context) -> None:
        time.sleep(0.4 if partition < 4 else 30)

    def body(grid: Grid) -> None:
        list(grid.send_and_receive(instructions(grid)[:1], timeout=600))  # the workers have started
        # Two workers: two of the four pushed ones wait while the exchange is on.
        ids = list(grid.push_messages(instructions(grid)[:4]))
        assert list(grid.send_and_receive(instructions(grid)[5:], timeout=1.2)) == []
        assert weights(pulled(grid, ids)) == {i: float(i) for i in range(4)}

    within(client_app(sleep), body, workers=2)


def test_replies_are_averaged_at_the_workers_with_a_row_for_each_client() -> None:
    def body(grid: Grid) -> None:
        plain = list(grid.send_and_receive(instructions(grid)))
        marked = averaged(FedAvg(), instructions(grid), ["seen"])
        replies = grid.send_and_receive(marked)
        assert isinstance(replies, AveragedReplies)
        assert [r.content["metrics"]["num-examples"] for r in replies.rows] == [1, 2, 3, 4, 5, 6]
        assert all("arrays" not in r.content for r in replies.rows)
        # Σ (i+1)·i / Σ (i+1) = 70/21 over i = 0 … 5, of weights and of the first of the pair.
        for given in (plain, list(replies)):
            arrays, metrics = FedAvg().aggregate_train(1, given)
            np.testing.assert_allclose(arrays["w"].numpy(), 70 / 21, rtol=1e-6)
            np.testing.assert_allclose(metrics["pair"], [70 / 21, 1.0], rtol=1e-12)
        assert len(replies) < len(plain)

    within(client_app(), body, workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_models_of_different_shapes_are_averaged_apart(workers: int) -> None:
    def body(grid: Grid) -> None:
        results = []
        for _ in range(2):
            replies = grid.send_and_receive(averaged(FedAvg(), sized_instructions(grid)))
            assert isinstance(replies, AveragedReplies)
            sums: dict[int, tuple[float, float]] = {}
            for part in replies:
                size = 3 - (part.metadata.src_node_id - 2) % 3  # labelled by one who got it
                w, n = part.content["arrays"]["w"].numpy(), part.content["metrics"]["num-examples"]
                assert w.shape == (size,)
                total, count = sums.get(size, (0.0, 0.0))
                sums[size] = total + n * w[0], count + n
            # Clients i and i + 3 have i + 1 and i + 4 examples and answer i and i + 3.
            for i in range(3):
                total, count = sums[3 - i]
                assert count == 2 * i + 5
                assert total == pytest.approx((i + 1) * i + (i + 4) * (i + 3))
            results.append([p.content["arrays"]["w"].numpy().tobytes() for p in replies])
        assert results[0] == results[1]

    within(client_app(), body, workers=workers)


def test_state_stays_with_its_client_whoever_plays_it() -> None:
    def body(grid: Grid) -> None:
        for count in (1, 2, 3):
            sent = instructions(grid)
            # Other neighbours each time, so that clients move between the workers.
            chosen = sent[count % 2 :: 2] + sent[(count + 1) % 2 :: 2]
            replies = list(grid.send_and_receive(chosen))
            assert [r.content["metrics"]["seen"] for r in replies] == [count] * CLIENTS

    within(client_app(), body, workers=2)


def alone_and_at_once() -> tuple[ClientApp, CohortApp]:
    """The app of the other tests, and one that trains one by one as it does."""
    alone, app = client_app(), CohortApp()
    app._registered_funcs = alone._registered_funcs
    return alone, app


def two_rounds(grid: Grid) -> None:
    """Every client answers as it does alone, and remembers the round before."""
    for count in (1, 2):
        replies = list(grid.send_and_receive(instructions(grid)))
        assert weights(replies) == {i: float(i) for i in range(CLIENTS)}
        assert [r.content["metrics"]["seen"] for r in replies] == [count] * CLIENTS


def test_a_cohort_goes_to_the_app_at_once_and_one_that_fails_is_trained_one_by_one(
    tmp_path: Path, caplog, monkeypatch
) -> None:
    alone, app = alone_and_at_once()

    @app.cohort
    def together(messages: list[Message], contexts: list[Context]) -> list[Message] | str:
        partitions = [int(c.node_config["partition-id"]) for c in contexts]
        with (tmp_path / "calls").open("a") as file:
            file.write(f"{partitions}\n")
        if 2 in partitions:
            raise RuntimeError("cannot stack these")
        if 0 in partitions:
            return "one of them is the first"
        return [alone(m, c) for m, c in zip(messages, contexts, strict=True)]

    monkeypatch.setattr(logging.getLogger("fedwsa"), "propagate", True)
    within(app, two_rounds, workers=1, cohort=2)
    calls = [numbers(line) for line in (tmp_path / "calls").read_text().splitlines()]
    # One worker: jobs of 60, 30 and 10 % of six equal clients are 0-3, 4-5, none.
    assert calls == [[0, 1], [2, 3], [4, 5]] * 2
    # By identity: where the logger has a handler of its own, caplog sees a record twice.
    warned = {id(r): r.getMessage() for r in caplog.records if r.name == "fedwsa"}
    asked, failed = warned.values()
    assert asked == "clients are trained one by one, since one of them is the first"
    assert failed.startswith(
        "clients could not be trained at once, and are trained one by one: "
        "RuntimeError: cannot stack these ("
    )


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("of a GPU"), MemoryError()])
@pytest.mark.parametrize("in_one_piece", [True, False])
def test_where_memory_is_full_half_as_many_are_trained_at_once_from_then_on(
    full: Exception, in_one_piece: bool, tmp_path: Path, caplog, monkeypatch
) -> None:
    alone, app = alone_and_at_once()

    @app.cohort
    def together(messages: list[Message], contexts: list[Context]) -> list[Message] | CohortReply:
        with (tmp_path / "calls").open("a") as file:
            file.write(f"{[int(c.node_config['partition-id']) for c in contexts]}\n")
        if len(messages) > 2:
            contexts[0].state["broken off"] = ConfigRecord()  # which no client keeps
            raise full
        answers = [alone(m, c) for m, c in zip(messages, contexts, strict=True)]
        if not in_one_piece:
            return answers
        arrays = [a.content["arrays"]["w"].numpy() for a in answers]
        return CohortReply({"w": np.stack(arrays)}, [dict(a.content["metrics"]) for a in answers])

    monkeypatch.setattr(logging.getLogger("fedwsa"), "propagate", True)
    within(app, two_rounds, workers=1, cohort=4, work=[1] * CLIENTS)
    calls = [numbers(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == [[0, 1, 2, 3], [0, 1], [2, 3], [4, 5], [0, 1], [2, 3], [4, 5]]
    [line] = {r.getMessage() for r in caplog.records if r.name == "fedwsa"}
    assert line == (
        "4 clients at once do not fit in the memory of a worker, which trains them 2 at once from "
        "now on"
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "must return a CohortReply, a list of Messages, or a string that says why"),
        ([], "answers for 0 clients of 2"),
        ("too few metrics", r"w has shape \(2, 2\); with metrics of 1 clients it must be \(1, …\)"),
        ("a word", "Not all values are of valid type"),
    ],
)
def test_what_is_no_answer_of_a_cohort_is_said_and_each_trains_alone(
    answer: object, said: str, caplog, monkeypatch
) -> None:
    _, app = alone_and_at_once()

    @app.cohort
    def together(messages: list[Message], contexts: list[Context]) -> object:
        if not isinstance(answer, str):
            return answer
        metrics = [{"num-examples": "one" if answer == "a word" else 1}] * 2
        return CohortReply({"w": np.ones((2, 2))}, metrics[: 1 if "few" in answer else 2])

    def body(grid: Grid) -> None:
        replies = list(grid.send_and_receive(instructions(grid)))
        assert weights(replies) == {i: float(i) for i in range(CLIENTS)}

    monkeypatch.setattr(logging.getLogger("fedwsa"), "propagate", True)
    within(app, body, workers=1, cohort=2)
    warned = {id(r): r.getMessage() for r in caplog.records if r.name == "fedwsa"}
    [line] = warned.values()
    assert re.search(said, line)
    assert "\n" not in line


def numbers(line: str) -> list[int]:
    return [int(word) for word in line.strip("[]").split(",")]
