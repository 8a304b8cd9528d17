"""The engine when something fails: clients, workers, time, arguments."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from flwr.app import (
    Array,
    Context,
    Message,
    MessageType,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedwsa import interruption
from fedwsa.algorithms.averaging import averaged
from fedwsa.simulation import SimulationError, pool
from fedwsa.simulation import grid as grid_module
from fedwsa.simulation.reduce import AveragedReplies
from tests.given.engine import (
    CLIENTS,
    client_app,
    instructions,
    sized_instructions,
    weights,
    within,
)

pytestmark = pytest.mark.usefixtures("two_workers")


def test_a_worker_that_dies_among_sizes_is_replaced(tmp_path: Path) -> None:
    def die_once(partition: int, context: Context) -> None:
        if partition == 3 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def body(grid: Grid) -> None:
        replies = grid.send_and_receive(averaged(FedAvg(), sized_instructions(grid)))
        for part in replies:
            size = 3 - (part.metadata.src_node_id - 2) % 3
            assert part.content["arrays"]["w"].shape == (size,)
        assert sum(p.content["metrics"]["num-examples"] for p in replies) == 21

    within(client_app(die_once), body, workers=2)


def test_a_client_that_raises_is_an_error_with_client_stage_and_traceback() -> None:
    def raise_in_two(partition: int, context: Context) -> None:
        if partition == 2:
            raise RuntimeError("the battery is empty")

    def body(grid: Grid) -> None:
        for marked in (instructions(grid), averaged(FedAvg(), instructions(grid))):
            replies = grid.send_and_receive(marked)
            [error] = [r for r in replies if r.has_error()]
            assert error.metadata.src_node_id == 4
            first, second, *rest = error.error.reason.splitlines()
            assert first.startswith("RuntimeError: the battery is empty (")
            assert re.search(
                r"tests/simulation/test_failures\.py:\d+\)$", first
            )  # where it was raised
            assert second == "in train of client 2"
            assert any("raise_in_two" in line for line in rest)
        [stranger] = grid.send_and_receive([Message(RecordDict(), 2, MessageType.EVALUATE)])
        assert "No evaluate function registered" in stranger.error.reason

    within(client_app(raise_in_two), body)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda m: None, "TypeError: the ClientApp returned a NoneType, not a Message"),
        (
            lambda m: Message(RecordDict(), 2, MessageType.TRAIN),
            "ValueError: the ClientApp returned a Message that is no reply to the one it got",
        ),
        (lambda m: sys.exit(3), "SystemExit: 3"),
    ],
    ids=["nothing", "no reply", "exit"],
)
def test_what_an_app_must_not_return_is_its_client_s_error_alone(answer, reason: str) -> None:
    honest, app = client_app(), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        faulty = context.node_config["partition-id"] == 4
        return answer(message) if faulty else honest(message, context)

    def body(grid: Grid) -> None:
        replies = list(grid.send_and_receive(instructions(grid)))
        assert weights(replies) == {i: float(i) for i in range(CLIENTS) if i != 4}
        [error] = [r for r in replies if r.has_error()]
        first, second, *_ = error.error.reason.splitlines()
        assert first.startswith(reason)
        assert second == "in train of client 4"

    within(app, body)


def test_a_reply_that_cannot_be_averaged_is_left_out_and_named() -> None:
    honest, app = client_app(), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        partition = int(context.node_config["partition-id"])
        if partition == 1:
            reply.content["arrays"]["w"] = Array(np.array([1, np.nan, 1], np.float32))
        elif partition == 2:
            reply.content["arrays"]["w"] = Array(np.ones(2, np.float32))
        elif partition == 3:
            del reply.content["metrics"]["seen"]
        elif partition == 4:
            reply.content["metrics"]["num-examples"] = -1
        return reply

    def body(grid: Grid) -> None:
        replies = grid.send_and_receive(averaged(FedAvg(), instructions(grid), ["seen"]))
        reasons = {r.metadata.src_node_id - 2: r.error.reason for r in replies if r.has_error()}
        assert reasons == {
            1: "wrong arrays: w is NaN or infinite",
            2: "wrong arrays: w is (2,), not (3,)",
            3: "the metrics have no number seen",
            4: "num-examples must be positive",
        }
        arrays, _ = FedAvg().aggregate_train(1, [r for r in replies if r.has_content()])
        np.testing.assert_allclose(arrays["w"].numpy(), (1 * 0 + 6 * 5) / 7, rtol=1e-6)

    within(app, body)


@pytest.mark.parametrize("mark", [False, True], ids=["single", "averaged"])
def test_a_worker_that_dies_is_replaced_and_its_clients_tried_again(
    mark: bool, tmp_path: Path
) -> None:
    def die_once(partition: int, context: Context) -> None:
        died = tmp_path / "died"
        if partition == 3 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def body(grid: Grid) -> None:
        for count in (1, 2):
            sent = instructions(grid)
            replies = grid.send_and_receive(averaged(FedAvg(), sent) if mark else sent)
            rows = replies.rows if isinstance(replies, AveragedReplies) else replies
            # Each counted once a round, those that were tried again too.
            assert [r.content["metrics"]["seen"] for r in rows] == [count] * CLIENTS
            arrays, _ = FedAvg().aggregate_train(1, list(replies))
            np.testing.assert_allclose(arrays["w"].numpy(), 70 / 21, rtol=1e-6)
        assert (tmp_path / "died").exists()

    within(client_app(die_once), body, workers=2)


@pytest.mark.parametrize("mark", [False, True], ids=["single", "averaged"])
def test_a_client_that_kills_its_worker_twice_has_failed_and_the_others_have_not(
    mark: bool,
) -> None:
    def die(partition: int, context: Context) -> None:
        if partition == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def body(grid: Grid) -> None:
        sent = instructions(grid)
        replies = grid.send_and_receive(averaged(FedAvg(), sent) if mark else sent)
        [error] = [r for r in replies if r.has_error()]
        assert error.error.reason == "the worker died, twice\nin train of client 3"
        arrays, _ = FedAvg().aggregate_train(1, list(replies))
        # Without the fourth: Σ (i+1)·i = 70 − 12, Σ (i+1) = 21 − 4.
        np.testing.assert_allclose(arrays["w"].numpy(), 58 / 17, rtol=1e-6)

    within(client_app(die), body, workers=2)


@pytest.mark.parametrize("mark", [False, True], ids=["single", "averaged"])
@pytest.mark.parametrize("stubborn", [False, True], ids=["sleeps", "cannot be interrupted"])
def test_a_late_client_is_missing_had_no_effect_and_does_not_hold_up_the_next_round(
    mark: bool, stubborn: bool, tmp_path: Path
) -> None:
    seconds = 2.0 if stubborn else 4.0  # the others are to be through by then

    def sleep_once(partition: int, context: Context) -> None:
        if partition == 5 and not (tmp_path / "slept").exists():
            (tmp_path / "slept").touch()
            if stubborn:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            time.sleep(60)

    def body(grid: Grid) -> None:
        def exchange(timeout: float | None) -> list[Message]:
            sent = instructions(grid)
            replies = grid.send_and_receive(
                averaged(FedAvg(), sent) if mark else sent, timeout=timeout
            )
            return replies.rows if isinstance(replies, AveragedReplies) else list(replies)

        grid.send_and_receive([])
        # With a timeout it waits for the workers: one that died in the test before is starting.
        list(grid.send_and_receive(instructions(grid)[:1], timeout=600))
        start = time.monotonic()
        rows = exchange(seconds)
        assert seconds <= time.monotonic() - start < 40  # it would sleep for a minute
        late = {r.metadata.src_node_id - 2 for r in rows}
        assert 5 not in late
        if not stubborn:
            assert late == set(range(5))
        rows = exchange(90.0)
        seen = {r.metadata.src_node_id - 2: r.content["metrics"]["seen"] for r in rows}
        assert seen[5] == 1
        assert len(seen) == CLIENTS

    within(client_app(sleep_once), body, workers=2)


SLOW_PACKAGE = """
import slowly.part, time
time.sleep(1.2)
value = slowly.part.value
"""


def test_an_import_is_not_interrupted(tmp_path: Path) -> None:
    # Half of a package: slowly.part would stay among the modules, and a new slowly lack it.
    (tmp_path / "slowly").mkdir()
    (tmp_path / "slowly" / "__init__.py").write_text(SLOW_PACKAGE)
    (tmp_path / "slowly" / "part.py").write_text("value = 7")

    def imports(partition: int, context: Context) -> None:
        if partition == 5:
            sys.path.insert(0, str(tmp_path))
            import slowly  # type: ignore[import-not-found]

            assert slowly.value == 7

    def body(grid: Grid) -> None:
        one = instructions(grid)[5:]
        assert list(grid.send_and_receive(one, timeout=1.0)) == []
        [reply] = grid.send_and_receive(instructions(grid)[5:])
        assert not reply.has_error()

    within(client_app(imports), body, workers=1, keep_workers=False)


def test_a_timeout_begins_when_the_workers_live(monkeypatch: pytest.MonkeyPatch) -> None:
    started = 0.0
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: time.monotonic() + started})
    for module in (grid_module, pool):
        monkeypatch.setattr(module, "time", clock)
    await_ready = pool.Pool.await_ready

    def slowly(self: pool.Pool) -> None:
        nonlocal started
        await_ready(self)
        started = 1000.0

    monkeypatch.setattr(pool.Pool, "await_ready", slowly)

    def body(grid: Grid) -> None:
        replies = grid.send_and_receive(instructions(grid), timeout=600.0)
        assert len(list(replies)) == CLIENTS

    within(client_app(), body, keep_workers=False)


def test_an_exchange_ends_by_a_signal_that_python_swallowed(monkeypatch, tmp_path: Path) -> None:
    def wait(partition: int, context: Context) -> None:
        end = time.monotonic() + 600
        while not (tmp_path / "over").exists() and time.monotonic() < end:
            time.sleep(0.01)

    def body(grid: Grid) -> None:
        def note(done: int, total: int) -> None:
            monkeypatch.setattr(interruption, "_number", signal.SIGINT)

        grid.report_progress(note)  # type: ignore[attr-defined]
        try:
            with pytest.raises(KeyboardInterrupt):
                grid.send_and_receive(instructions(grid))
        finally:
            (tmp_path / "over").touch()

    within(client_app(wait), body)


def test_an_error_of_the_server_reaches_the_caller_and_ends_the_workers() -> None:
    def body(grid: Grid) -> None:
        list(grid.send_and_receive(instructions(grid)))
        raise ArithmeticError("stop here")

    with pytest.raises(ArithmeticError, match="stop here"):
        within(client_app(), body, keep_workers=False)
    end = time.monotonic() + 600
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "num_supernodes=0: must be a whole number, at least 1"),
        ({"clients": 2.5}, "num_supernodes=2.5: must be a whole number, at least 1"),
        ({"workers": 0}, "workers=0: must be a whole number, at least 1"),
        ({"cohort": "auto"}, "cohort='auto': must be a whole number, at least 1"),
        ({"work": [-1.0] * 6}, "work: must be numbers that are not negative"),
        ({"work": [float("nan")] * 6}, "work: must be numbers that are not negative"),
        ({"gpus_per_worker": -1}, "cannot have 1 CPUs and -1 GPUs"),
        ({"backend_name": "threads"}, "only ray is supported"),
        ({"work": [1.0]}, "work has 1 entries for 6 clients"),
        ({"gpus_per_worker": 0.5}, "no place for a worker with 0.5 of a GPU"),
        ({"address": "127.0.0.1:1"}, "127.0.0.1:1: nobody answers there"),
        ({"address": "here"}, "must be auto or HOST:PORT"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict, message: str) -> None:
    def body(grid: Grid) -> None:
        raise AssertionError("nothing may start")

    with pytest.raises(SimulationError, match=message) as caught:
        within(client_app(), body, **options)
    assert "\n" not in str(caught.value)


def test_more_workers_than_cores_are_cut_with_a_warning(caplog, monkeypatch) -> None:
    def body(grid: Grid) -> None:
        assert len(list(grid.send_and_receive(instructions(grid)))) == CLIENTS

    monkeypatch.setattr(logging.getLogger("fedwsa"), "propagate", True)
    within(client_app(), body, workers=64)
    assert "64 workers asked for, but there are 2 cores: using 2" in caplog.text
