"""Workers that are left for the next run of a process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedwsa.simulation import kept, run_simulation

pytestmark = pytest.mark.usefixtures("two_workers")


def clients(says: str) -> ClientApp:
    """Answer with the process, and keep a note of this app's own."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if says == "dies":
            os._exit(1)
        before = context.state.config_records.get("note")
        metrics = MetricRecord({"pid": os.getpid(), "knew": int(before is not None)})
        context.state["note"] = message.content["config"]
        reply = RecordDict({"metrics": metrics, says: ArrayRecord()})
        return Message(reply, reply_to=message)

    return app


def run(says: str, workers: int, keep: bool, count: int = 6) -> tuple[set[int], set[str], set[int]]:
    """Processes that answered, what they said, and whether they remembered anything."""
    from flwr.app import ConfigRecord, MessageType

    answers: list[Message] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        sent = [
            Message(RecordDict({"config": ConfigRecord({"n": 1})}), node, MessageType.TRAIN)
            for node in grid.get_node_ids()
        ]
        answers.extend(grid.send_and_receive(sent))

    run_simulation(server, clients(says), count, workers=workers, keep_workers=keep)
    good = [a.content for a in answers if a.has_content()]
    pids = {int(c["metrics"]["pid"]) for c in good}
    knew = {int(c["metrics"]["knew"]) for c in good}
    return pids, {name for c in good for name in c.array_records}, knew


def test_the_next_run_has_the_same_processes_and_nothing_else_of_the_last() -> None:
    first, said, _ = run("one", 2, True)
    assert said == {"one"}
    second, said, knew = run("two", 2, True)
    assert second == first
    assert said == {"two"}
    assert knew == {0}  # a client's state belongs to its run


def test_workers_that_are_not_wanted_make_place() -> None:
    first, _, _ = run("one", 2, True)
    second, _, _ = run("two", 1, True)
    assert len(second) == 1
    assert second <= first
    assert run("again", 2, True)[0] == first  # the other one waited
    third, _, _ = run("three", 2, False)  # a run of its own: new ones, and none is left
    assert not third & first
    assert kept._waiting == []


def test_a_worker_that_died_is_not_kept() -> None:
    first, _, _ = run("one", 1, True)
    assert run("dies", 1, True, 1)[0] == set()
    after, said, _ = run("two", 1, True)
    assert said == {"two"}
    assert after != first


def test_workers_that_died_while_they_waited_are_replaced_and_no_client_fails() -> None:
    waiting, _, _ = run("one", 2, True)
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)
    # With one client alone, a second try would meet the other dead worker.
    pids, said, _ = run("two", 2, True, 1)
    assert said == {"two"}
    assert not pids & waiting


def test_code_that_is_found_elsewhere_gets_new_workers(monkeypatch, tmp_path) -> None:
    first, _, _ = run("one", 1, True)
    monkeypatch.syspath_prepend(str(tmp_path))
    second, _, _ = run("two", 1, True)
    assert not second & first


def waiting() -> set[str]:
    return {str(own.actor._actor_id) for own in kept._waiting}


@pytest.mark.parametrize("where", ["as it was", "added", "in front"])
def test_workers_that_began_early_play_the_run_unless_code_may_be_found_elsewhere(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run("before", 1, False)
    kept.start_early(2, ["no_such_module", "clients.app"])
    early = waiting()
    if where == "added":
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    elif where == "in front":
        monkeypatch.syspath_prepend(str(tmp_path))
    _, said, _ = run("one", 2, True)
    assert said == {"one"}
    assert (waiting() == early) == (where != "in front")
    run("after", 1, False)


def test_of_workers_that_began_early_none_is_left_over() -> None:
    run("before", 1, False)
    kept.start_early(2, [])
    early = waiting()
    run("one", 1, True)
    assert len(waiting()) == 1
    assert waiting() < early
