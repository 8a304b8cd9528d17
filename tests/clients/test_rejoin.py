"""What becomes of answers, and of nodes, between our own two apps as a deployment has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from flwr.app import Error, Message, RecordDict
from safetensors.torch import load_file

import clients.app
import server.app
from fedwsa.wire import messages
from tests.given.apps import Loopback, context

pytestmark = pytest.mark.usefixtures("task_identity")

Answer = Callable[[Message], Message]
Fate = Callable[["Loopback", Message, Answer], list[Message]]

WORDS = "clients.count=3 local.epochs=1 model.width=0.1 evaluation.every=4 guard.min_results=2"


def never_asked(grid: Loopback, message: Message, answer: Answer) -> list[Message]:
    return []


def lost(grid: Loopback, message: Message, answer: Answer) -> list[Message]:
    answer(message)
    return []


def failed(grid: Loopback, message: Message, answer: Answer) -> list[Message]:
    answer(message)
    return [Message(Error(2, "no way back"), reply_to=message)]


def refused(grid: Loopback, message: Message, answer: Answer) -> list[Message]:
    reply = answer(message)
    tensors = messages.to_tensors(reply.content["arrays"])
    bad = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
    reply.content["arrays"] = messages.to_arrays(bad)
    return [reply]


def asked_twice(grid: Loopback, message: Message, answer: Answer) -> list[Message]:
    return [answer(message), answer(message)][1:]


def restarted(grid: Loopback, message: Message, answer: Answer) -> list[Message]:
    grid.contexts[message.metadata.dst_node_id].state = RecordDict()
    return [answer(message)]


class Fateful(Loopback):
    """To one client something happens in round 2."""

    def __init__(self, run_config: dict, fate: Fate | None) -> None:
        super().__init__(3, run_config)
        self.fate = fate

    def send_and_receive(self, messages, *, timeout=None):
        return [reply for message in messages for reply in self._replies(message)]

    def _replies(self, message: Message) -> list[Message]:
        own = self.contexts[message.metadata.dst_node_id]
        config = message.content.config_records.get("config", {})
        fateful = own.node_config["partition-id"] == 1 and config.get("server-round") == 2
        if self.fate is None or not fateful or message.metadata.message_type != "train":
            return [clients.app.app(message, own)]
        return self.fate(self, message, lambda m: clients.app.app(m, own))


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: str, fate: Fate | None, rounds: int = 4
) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """The model, and the history."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    overrides = f"{WORDS} {words} rounds={rounds} cache_dir={folder.parent}/cache"
    run_config = {"overrides": overrides}
    server.app.app(Fateful(run_config, fate), context({}, run_config))
    written = folder / "runs" / "flower-1"
    model = written / "model.safetensors"
    return load_file(model) if model.exists() else {}, pd.read_csv(written / "history.csv")


@pytest.mark.parametrize("words", ["strategy=scaffold", "strategy=feddyn wsa=on", "strategy=moon"])
def test_an_answer_that_does_not_count_is_as_a_message_that_never_came(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = run(tmp_path / "never", monkeypatch, words, never_asked)
    plain, _ = run(tmp_path / "plain", monkeypatch, words, None)
    assert not all(torch.equal(expected[name], t) for name, t in plain.items())
    for fate in (lost, failed, refused):
        model, history = run(tmp_path / fate.__name__, monkeypatch, words, fate)
        column = "rejected" if fate is refused else "failed"
        assert history[column].fillna(-1).tolist() == [-1, 1, -1, -1]  # client 1
        assert all(torch.equal(expected[name], tensor) for name, tensor in model.items()), fate
    twice, _ = run(tmp_path / "twice", monkeypatch, words, asked_twice)
    assert all(torch.equal(plain[name], tensor) for name, tensor in twice.items())


@pytest.mark.parametrize("strategy", ["scaffold", "feddyn", "moon", "fedper"])
def test_a_node_that_was_restarted_misses_a_round_and_takes_part_again(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, history = run(tmp_path / "run", monkeypatch, f"strategy={strategy} wsa=on", restarted)
    assert history["failed"].fillna(-1).tolist() == [-1, 1, -1, -1]  # client 1
    events = (tmp_path / "run" / "runs" / "flower-1" / "events.jsonl").read_text()
    [event] = events.splitlines()
    assert "the client has lost what it kept after round 1" in event
    assert "as after a restart" in event
