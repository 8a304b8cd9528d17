"""Somebody's own part that fails, at every place where it is called: a line with its place."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

import clients.app
from experiments.commands import simulate as command
from experiments.commands.simulate import simulate
from fedwsa.config.blame import place_of, told
from fedwsa.config.component import ConfigError, locate
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from fedwsa.simulation.orders import Answers, Job, Order
from fedwsa.simulation.transport import pack, shell, unpack
from fedwsa.simulation.worker import Worker
from server.federation import Federation
from server.rounds import RunError
from tests.given.failing import fail

FLEET = [
    *("rounds=1", "clients.count=2", "local.epochs=1", "device=cpu"),
    *("dataset=digits", "dataset._target_=tests.given.failing.source"),
    *("partition=iid", "partition._target_=tests.given.failing.partition"),
    *("model=mlp", "model._target_=tests.given.failing.net", "~model.width", "~model.depth"),
]
OURS = "strategy._target_=tests.given.failing.Average"
HERE = r"\(\S*tests/given/failing\.py:\d+\)"


def composed(tmp_path: Path, *words: str) -> Config:
    strategy = [] if any(w.startswith("strategy=") for w in words) else [OURS]
    return compose([*FLEET, *strategy, f"cache_dir={tmp_path / 'cache'}", *words])


class Nodes:
    """The clients of a run in this process, each answering as it would in a worker."""

    def __init__(self, config: Config) -> None:
        self.known_partitions = {k + 1: k for k in range(2)}
        self.worker = Worker()
        self.worker.serve(clients.app.build(config), 1, 2, {})

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        for message in messages:
            partition = self.known_partitions[message.metadata.dst_node_id]
            order = Order(shell(message), partition, 0, time.monotonic() + 600, 600.0)
            for part in self.worker.run(Job([order], [pack(message.content)])):
                for reply, packed in part.rows if isinstance(part, Answers) else ():
                    if packed is not None:
                        reply.content = unpack(packed)
                    yield reply


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker sets, put back afterwards."""
    for name in ("run_id", "task_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


BEFORE = {
    "model: ": [f"+model.at={at}" for at in ("builder", "init", "named_parameters", "state_dict")],
    "model: it cannot answer inputs (2, 1, 2, 2): ": ["+model.at=forward"],
    "dataset: ": ["+dataset.at=source"],
    "dataset: failing-decode-plain: ": ["+dataset.at=decode"],
    "partition: ": ["+partition.at=partition"],
    "partition=partition: ": ["+partition.at=shares"],
    "tracker.mine: ": ["+tracker.mine._target_=tests.given.failing.Lines +tracker.mine.at=tracker"],
    "strategy.args: ": ["+strategy.args.at=strategy"],
}


@pytest.mark.parametrize(
    ("begin", "words"), [(begin, words) for begin, all_ in BEFORE.items() for words in all_]
)
def test_what_fails_before_a_run_refuses_it(begin: str, words: str, tmp_path: Path) -> None:
    for how, said in (("plain", "RuntimeError: my bug"), ("exit", "SystemExit: 0")):
        group = words.rpartition("at=")[0].split()[-1]
        begins = begin.replace("plain", how)
        with pytest.raises(ConfigError) as caught:
            simulate(composed(tmp_path, *words.split(), f"{group}how={how}"), tmp_path / "run")
        assert re.fullmatch(f"{re.escape(begins + said)} {HERE}", str(caught.value))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_start_and_one_that_stops(tmp_path: Path, caplog: Any) -> None:
    words = ["+tracker.mine._target_=tests.given.failing.Lines", "+tracker.mine.how=exit"]
    config = composed(tmp_path, *words, "+tracker.mine.at=on_start")
    with pytest.raises(RunError) as caught:
        Federation(config, tmp_path / "run").start(Nodes(config))
    line = f"tracker\\.mine: cannot start: SystemExit: 0 {HERE}"
    assert re.fullmatch(line, str(caught.value))
    for at in ("log", "on_result", "on_end"):
        config = composed(tmp_path, *words, f"+tracker.mine.at={at}")
        Federation(config, tmp_path / at).start(Nodes(config))
        assert (tmp_path / at / "result.json").exists()


IN_A_ROUND = {
    "all 2 clients failed in training: {} in train of client 0": [
        "+model.at=training +model.how=",
        "skew._target_=tests.given.failing.Skew +skew.at=apply +skew.how=",
    ],
    "evaluating the model raised {}": ["+model.at=evaluation +model.how="],
    **{
        f"Average.{hook} raised {{}}": [f"+strategy.args.at={hook} +strategy.args.how="]
        for hook in ("configure_train", "aggregate_train")
    },
    **{
        f"Average.{hook} raised {{}} ": [f"+strategy.args.at={hook} +strategy.args.how="]
        for hook in ("configure_evaluate", "aggregate_evaluate")
    },
    "OneShot.aggregate_train raised {}": [
        "strategy=oneshot merge._target_=tests.given.failing.merged +merge.how="
    ],
}


@pytest.mark.parametrize(
    ("line", "words", "how"),
    [
        *((line, words, "exit") for line, all_ in IN_A_ROUND.items() for words in all_),
        # What a context manager, too, may take for its own.
        ("evaluating the model raised {}", "+model.at=evaluation +model.how=", "stop"),
    ],
)
def test_what_fails_in_a_round_ends_the_run(line, words, how, tmp_path: Path) -> None:
    config = composed(tmp_path, *f"{words}{how}".split())
    with pytest.raises(RunError) as caught:
        Federation(config, tmp_path / "run").start(Nodes(config))
    begin, end = f"round 1: {line.strip()}".split("{}")
    said = {"exit": "SystemExit: 0", "stop": "StopIteration"}[how]
    wanted = f"{re.escape(begin)}{said} {HERE}{re.escape(end)}"
    assert re.fullmatch(wanted, str(caught.value))
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("name", ["AtInit", "AtGradient", "AtEnd"])
def test_an_objective_that_fails(name: str, tmp_path: Path) -> None:
    config = composed(tmp_path, f"local.objectives=[tests.given.failing.{name}]")
    with pytest.raises(RunError, match=f"failed in training: RuntimeError: my bug {HERE} in tr"):
        Federation(config, tmp_path / "run").start(Nodes(config))


def test_ctrl_c_in_a_client_s_code_is_the_client_s(tmp_path: Path) -> None:
    config = composed(tmp_path, "+model.at=training", "+model.how=interrupt")
    with pytest.raises(RunError, match=f"failed in training: KeyboardInterrupt {HERE} in train"):
        Federation(config, tmp_path / "run").start(Nodes(config))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("plain", "RuntimeError: my bug (HERE)"),
        ("file", "FileNotFoundError: [Errno 2] No such file or directory: 'my.txt' (HERE)"),
        ("empty", "RuntimeError (HERE)"),
        ("lines", "RuntimeError: my bug (HERE)"),
        ("group", "ExceptionGroup: two (2 sub-exceptions) (HERE): ValueError: my bug"),
        ("exit", "SystemExit: 0 (HERE)"),
        ("system", "SystemExit: my bug (HERE)"),
        ("unspeakable", "Unspeakable (HERE)"),
    ],
)
def test_every_error_has_a_line(how: str, said: str) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        fail(how)
    line = re.sub(
        r"[^\s(]*tests/given/failing\.py:\d+",
        "HERE",
        told(
            caught.value.with_traceback(
                caught.value.__traceback__.tb_next  # without this file
            )
        ),
    )
    assert line == said


def test_an_error_of_a_file_is_not_told_as_one_of_the_run_folder() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fail("file")
    assert command.of_system(caught.value).startswith("FileNotFoundError: [Errno 2] No such file")
    assert place_of(OSError(28, "No space left", "/a/b")) is None


def test_pictures_that_fail_do_not_hide_why_a_run_ended(tmp_path: Path, monkeypatch) -> None:
    def ends(*_: Any) -> None:
        raise RunError("round 1: the reason")

    def no_pictures(*_: Any) -> None:
        raise OSError(28, "No space left", "curves.png")

    monkeypatch.setattr("experiments.commands.runtimes.run", ends)
    monkeypatch.setattr("experiments.commands.runtimes.start_ray", lambda config: None)
    monkeypatch.setattr("experiments.commands.runtimes.await_ray", lambda start: None)
    monkeypatch.setattr("experiments.commands.runs.draw_pictures", no_pictures)
    with pytest.raises(RunError, match="the reason"):
        simulate(composed(tmp_path), tmp_path / "run", pictures=True)
    assert "the reason" in (tmp_path / "run" / "failed.json").read_text()


def test_what_has_no_signature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model: dict does not say which arguments it takes"):
        simulate(composed(tmp_path, "model._target_=builtins.dict"), tmp_path / "run")


def test_indices_that_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    config = composed(tmp_path, "partition._target_=tests.given.failing.fractions")
    with pytest.raises(ConfigError, match="must return a list of arrays of indices"):
        simulate(config, tmp_path / "run")


def test_a_module_that_ends_the_process_is_refused(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a_script.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"importing a_script failed: SystemExit: 0 \(.*py:2\)$"):
        locate("a_script.net", "model._target_")
