"""Files are whole or not there: processes killed at every write, and full disks."""

from __future__ import annotations

import csv
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from flwr.app import MetricRecord

import server.folder
from experiments.reports.tables.runs import Run
from fedwsa.config.component import ConfigError
from fedwsa.runfolder.files import Lines, replacing, whole_lines, write_text
from fedwsa.runfolder.read import read_config as read_run
from fedwsa.runfolder.tensors import write_tensors
from fedwsa.schema.compose import compose
from server.callbacks.events import Events
from server.callbacks.tables import ClientTable, History, require_history
from server.folder import describe_run, require_begun
from server.record import RoundRecord

PHASES = {"train": 1.0, "aggregate": 1.0, "evaluate": 1.0}


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do a work in a process that dies at its n-th call of the system; whether it came to that.

    A write is done by half then.
    """
    child = os.fork()
    if child == 0:
        left = number

        def mortal(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def call(*given: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if not left:
                    if name == "write":
                        real(given[0], bytes(given[1])[: len(given[1]) // 2])
                    os._exit(9)
                return real(*given, **named)

            return call

        for name in ("open", "write", "fsync", "replace", "ftruncate"):
            setattr(os, name, mortal(name))
        try:
            work()
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may become larger."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def record(number: int, **metrics: float) -> RoundRecord:
    """A round, whose training loss says whether the first run or the resumed one had it."""
    answers = {0: MetricRecord({"num-examples": 3, **metrics})}
    return RoundRecord(number, seconds=dict(PHASES), answers=answers, train_loss=0.0)


def first(folder: Path) -> None:
    """A run of five rounds, of which three are in a checkpoint."""
    events, history, clients = Events(folder), History(folder), ClientTable(folder)
    for number in range(1, 6):
        events.on_event({"round": number, "kind": "failed", "run": "first"})
        for callback in (history, clients):
            callback.on_round(record(number, loss=1.0))


def resumed(folder: Path) -> None:
    """It goes on after the third, and its clients report something else from then on."""
    events, history = Events(folder, 3), History(folder, begun=3)
    clients = ClientTable(folder, 3)
    for number in (4, 5, 6):
        events.on_event({"round": number, "kind": "failed", "run": "second"})
        for callback in (history, clients, events):
            callback.on_round(record(number, accuracy=0.5, **{"late": 1.0} if number > 4 else {}))


def rounds_in(file: Path) -> list[int]:
    head, *rows = list(csv.reader(whole_lines(file).splitlines()))
    assert head[0] == "round"
    assert all(len(row) == len(head) for row in rows)
    return [int(row[0]) for row in rows]


def test_a_resume_that_is_killed_at_any_write_has_lost_nothing(tmp_path: Path) -> None:
    number, died = 0, True
    while died:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        first(folder)
        died = killed_at(number, lambda folder=folder: resumed(folder))
        for name in ("history.csv", "timing.csv", "clients.csv"):
            there = rounds_in(folder / name)
            # All of the first run until the resumed one has something in its place.
            assert there in ([1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]), (number, name)
        require_history(folder, 3)
        events = [json.loads(s) for s in whole_lines(folder / "events.jsonl").splitlines()]
        found = [(event["round"], event["run"]) for event in events]
        assert [r for r, _ in found[:3]] == [1, 2, 3]
        assert [r for r, _ in found] == list(range(1, len(found) + 1))
        assert len(found) >= 5 or found[3] == (4, "second")
        resumed(folder)  # and it goes on from there
        assert rounds_in(folder / "history.csv") == [1, 2, 3, 4, 5, 6]
    assert number > 20


def test_clients_csv_keeps_its_columns_where_others_come(tmp_path: Path) -> None:
    first(tmp_path)
    resumed(tmp_path)
    assert (tmp_path / "clients.csv").read_text().splitlines() == [
        "round,client,loss,num-examples,accuracy,late",
        *(f"{number},0,1.0,3,," for number in (1, 2, 3)),
        "4,0,,3,0.5,",
        *(f"{number},0,,3,0.5,1.0" for number in (5, 6)),
    ]


def test_a_metric_named_as_our_columns_does_not_hide_them(tmp_path: Path) -> None:
    table = ClientTable(tmp_path)
    table.on_round(record(7, client=5.0))
    table.on_end()
    head, row = (tmp_path / "clients.csv").read_text().splitlines()
    assert (head, row) == ("round,client,metrics.client,num-examples", "7,0,5.0,3")


def test_a_resume_that_does_no_round_leaves_the_later_ones(tmp_path: Path) -> None:
    first(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for callback in (Events(tmp_path, 3), History(tmp_path, begun=3), ClientTable(tmp_path, 3)):
        callback.on_end()
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_round_without_rows_takes_the_place_of_later_ones_too(tmp_path: Path) -> None:
    first(tmp_path)
    clients = ClientTable(tmp_path, 3)
    clients.on_round(RoundRecord(4, seconds=dict(PHASES)))
    assert rounds_in(tmp_path / "clients.csv") == [1, 2, 3]


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    first(tmp_path)
    for content in (b"client,round\n0,x\n", b"\xff\n", b"a,b\n1,2\n"):
        (tmp_path / "clients.csv").write_bytes(content)
        with pytest.raises(ConfigError, match=r"clients.csv lacks some of the 3 rounds that are"):
            ClientTable(tmp_path, 3)


def test_readers_leave_out_the_part_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("round,accuracy\n1,0.5\n2,0.98\n3,0.9")  # of 0.97
    assert Run(tmp_path, 0, {}, "").history == {"round": ["1", "2"], "accuracy": ["0.5", "0.98"]}


def test_a_row_that_finds_the_disk_full_leaves_no_part(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "rows")
    lines.begin(["one\n"])
    with (
        full_disk(1000),
        pytest.raises(OSError, match=r"File too large: .*rows") as said,
    ):
        lines.add(["x" * 600 + "\n", "y" * 600 + "\n"])
    assert said.value.filename == str(tmp_path / "rows")
    lines.add(["two\n"])
    assert (tmp_path / "rows").read_text() == "one\ntwo\n"


def _picture(file: Path) -> None:
    figure, axes = plt.subplots()
    axes.plot(range(3))
    with replacing(file) as part:
        figure.savefig(part)
    plt.close(figure)


def _tensors(file: Path) -> None:
    write_tensors(file, {"w": torch.ones(5000)}, {}, "out")


WRITERS: Sequence[tuple[str, Callable[[Path], object]]] = [
    ("a.json", lambda file: write_text(file, "new" * 5000)),
    ("a.png", _picture),
    ("a.safetensors", _tensors),
]


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_a_file_is_the_old_or_the_new_one(
    name: str, write: Callable[[Path], object], tmp_path: Path
) -> None:
    file = tmp_path / name
    write(file)
    new = file.read_bytes()
    file.unlink()
    file.write_bytes(b"old")
    file.chmod(0o640)
    with full_disk(100), pytest.raises((OSError, ConfigError), match="File too large"):
        write(file)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    number = 1
    while killed_at(number, lambda: write(file)):
        assert file.read_bytes() in (b"old", new)
        number += 1
    assert number > 2
    assert file.read_bytes() == new
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "a")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "a"
    reading, writing = os.pipe()
    write_text(Path(f"/dev/fd/{writing}"), "b")
    assert os.read(reading, 9) == b"b"
    for end in (reading, writing):
        os.close(end)


def described(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    config = compose(["clients.sizes={S: 0.5, L: 0.5}", "strategy=heterofl", "skew=noise"])
    partition: Any = SimpleNamespace(as_dict=lambda: {"hash": "0"}, shares=[])
    monkeypatch.setattr(server.folder, "environment", dict)  # asks git, in a process of its own
    known = {"clients": ["S"] * config.clients.count}
    return lambda: describe_run(config, partition, folder, known)


@pytest.mark.slow
def test_a_run_that_is_killed_before_it_is_described_is_none_and_may_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 1
    while killed_at(number, described(folder := tmp_path / str(number), monkeypatch)):
        if not (folder / "config.yaml").exists():
            with pytest.raises(ConfigError, match="there is no run in"):
                require_begun(folder)
            described(folder, monkeypatch)()
        require_begun(folder)
        assert read_run(folder)["rounds"] > 0
        assert json.loads((folder / "partition.json").read_text()) == {"hash": "0"}
        assert {"sizes.json", "skew.csv"} < {file.name for file in folder.iterdir()}
        number += 1
    assert number > 8
    with pytest.raises(ConfigError, match="holds a run already; name another folder"):
        described(folder, monkeypatch)()
