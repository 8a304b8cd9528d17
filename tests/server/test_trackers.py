"""Trackers: what was written is read back with each tool's own reader."""

from __future__ import annotations

import json
import logging
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from fedwsa.config.component import ConfigError
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from server.callbacks.tracker import Tracker
from server.federation import Federation
from server.rounds import RunError
from tests.given.apps import Loopback

pytestmark = pytest.mark.usefixtures("task_identity")

FLEET = "clients.count=4 partition=iid local.epochs=1 rounds=3 evaluation.every=2 wsa=on"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def run(folder: Path, cache: str, overrides: str) -> Config:
    run_config = {"overrides": f"{FLEET} cache_dir={cache} {overrides}"}
    config = compose(shlex.split(str(run_config["overrides"])))
    Federation(config, folder, Console(quiet=True)).start(Loopback(4, run_config))
    return config


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv")


def series(table: pd.DataFrame, column: str) -> dict[int, float]:
    seen = table.dropna(subset=[column])
    return dict(zip(seen["round"], seen[column], strict=True))


def scopes(folder: Path, layer: str, column: str) -> dict[int, float]:
    table = pd.read_csv(folder / "scopes.csv")
    return series(table[table["layer"] == layer], column)


def test_tensorboard_has_the_history_the_scopes_and_the_result(cache: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="fedwsa[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, cache, "tracker=tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    def scalars(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in events.Scalars(tag)}

    table = history(tmp_path)
    for column in ("accuracy", "train_loss", "bytes_up", "client_accuracy_jain"):
        assert scalars(column) == pytest.approx(series(table, column), rel=1e-6)
    assert scalars("cohort") == {1: 4, 2: 4, 3: 4}
    expected = scopes(tmp_path, "hidden0.weight", "fused_std")
    assert scalars("scope/hidden0.weight/fused_std") == pytest.approx(expected, rel=1e-6)
    [text] = events.Tensors("result/text_summary")
    found = text.tensor_proto.string_val[0].decode()
    assert json.loads(found) == json.loads((tmp_path / "result.json").read_text())


def test_mlflow_has_parameters_history_and_result_in_its_database(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="fedwsa[mlflow] is not installed")
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "run"
    run(folder, cache, "tracker=mlflow tracker.mlflow.experiment=digits seed=3")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    [found] = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["seed"] == "3"
    assert found.data.params["local.lr"] == "0.03"
    assert found.data.params["strategy._target_"] == "flwr.serverapp.strategy.FedAvg"
    assert found.data.tags["folder"] == str(folder)

    def metric(name: str) -> dict[int, float]:
        return {m.step: m.value for m in client.get_metric_history(found.info.run_id, name)}

    table = history(folder)
    for column in ("accuracy", "train_loss", "bytes_down", "simulated_seconds"):
        assert metric(column) == pytest.approx(series(table, column), rel=1e-12)
    expected = scopes(folder, "head.weight", "client_kl")
    assert metric("scope/head.weight/client_kl") == pytest.approx(expected, rel=1e-12)
    result = json.loads((folder / "result.json").read_text())
    assert metric("result/accuracy") == {3: result["accuracy"]}


def test_weights_and_biases_has_all_of_it_in_its_offline_folder(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="fedwsa[wandb] is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run(tmp_path, cache, "tracker=wandb tracker.wandb.project=digits")
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows: dict[int, dict[str, Any]] = {}
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for kind, record in records(file):
        if kind == "history":
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.item}
            rows[record.step.num] = {k: json.loads(v) for k, v in items.items()}
        elif kind == "run":
            assert record.project == "digits"
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "summary":
            for item in record.update:
                summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        elif kind == "exit":
            assert record.exit_code == 0
    table = history(tmp_path)
    for column in ("accuracy", "train_loss", "bytes_up"):
        found = {step: row[column] for step, row in rows.items() if column in row}
        assert found == pytest.approx(series(table, column), rel=1e-12)
    kl = {step: row["scope/head.weight/client_kl"] for step, row in rows.items() if step}
    assert kl == pytest.approx(scopes(tmp_path, "head.weight", "client_kl"), rel=1e-12)
    assert config["local"]["lr"] == 0.03
    result = json.loads((tmp_path / "result.json").read_text())
    assert summary["result/accuracy"] == result["accuracy"]


def records(file: Path) -> Iterator[tuple[str, Any]]:
    """The records of a .wandb file: LevelDB's log format behind seven bytes of a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, block = file.read_bytes(), 32768
    place, whole = 7, b""
    while place + 7 <= len(raw):
        if block - place % block < 7:  # no header begins so close to the end of a block
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", raw[place + 4 : place + 7])
        whole += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            record = Record()
            record.ParseFromString(whole)
            name = record.WhichOneof("record_type")
            yield name, getattr(record, name)
            whole = b""


HERE = r"\(tests/server/test_trackers.py:\d+\)"


class Mine(Tracker):
    """A stranger's, which keeps what it is given."""

    seen: list[Any] = []  # noqa: RUF012

    def __init__(self, breaks_in: int = 0) -> None:
        self._breaks_in = breaks_in

    def on_start(self, config: Config, folder: Path) -> None:
        if self._breaks_in < 0:
            raise OSError("no\nroom")
        self.seen.append(("start", config.rounds, folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step == self._breaks_in:
            raise OSError("no\nroom")
        self.seen.append((step, dict(values)))

    def on_result(self, result: Mapping[str, Any]) -> None:
        self.seen.append(("result", result["rounds"]))

    def on_end(self) -> None:
        self.seen.append(("end",))


MINE = "tracker.mine._target_=tests.server.test_trackers.Mine"


def test_a_stranger_s_tracker_goes_by_its_path(cache: str, tmp_path: Path) -> None:
    Mine.seen.clear()
    run(tmp_path, cache, f"{MINE} clients.dropout=0.5")
    assert Mine.seen[0] == ("start", 3, tmp_path)
    assert Mine.seen[-2:] == [("result", 3), ("end",)]
    assert [row[0] for row in Mine.seen[1:-2]] == [1, 2, 3]
    table = history(tmp_path)
    for number, values in Mine.seen[1:-2]:
        row = table.iloc[number - 1]
        assert values["dropped"] == len(str(row["dropped"]).split()) * pd.notna(row["dropped"])
        assert values["bytes_up"] == row["bytes_up"]
        assert ("accuracy" in values) == (number in (2, 3))
        assert values["seconds/train"] > 0


def test_a_tracker_that_breaks_is_left_out_and_the_run_goes_on(
    cache: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mine.seen.clear()
    monkeypatch.setattr(logging.getLogger("fedwsa"), "propagate", True)
    run(tmp_path, cache, f"{MINE} tracker.mine.breaks_in=2")
    assert [row[0] for row in Mine.seen] == ["start", 1]
    assert len(history(tmp_path)) == 3
    lines = {r.message for r in caplog.records if "tracker" in r.message}
    [line] = lines
    assert re.fullmatch(rf"tracker.mine failed and gets no more: OSError: no room {HERE}", line)


def test_a_tracker_that_cannot_start_ends_the_run_before_its_first_round(
    cache: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError) as caught:
        run(tmp_path, cache, f"{MINE} tracker.mine.breaks_in=-1")
    said = str(caught.value)
    assert re.fullmatch(rf"tracker.mine: cannot start: OSError: no room {HERE}", said)
    assert len(history(tmp_path)) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("tracker.mine.level=1", "tracker.mine._target_: field required"),
        ("tracker.mine._target_=tests.nothing.Mine", "tracker.mine._target_: cannot import tests"),
        (f"{MINE} tracker.mine.level=1", "tracker.mine.level: Mine has no such argument; it takes"),
        ("tracker=wandb tracker.wandb.mode=on", "tracker.wandb.mode: input should be 'offline'"),
        (
            "tracker.mine._target_=torch.nn.ReLU",
            "tracker.mine._target_: torch.nn.ReLU is no server.callbacks.tracker.Tracker",
        ),
    ],
)
def test_trackers_that_cannot_be_are_one_line(
    overrides: str, message: str, cache: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "run", cache, overrides)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_missing_is_named_with_its_extra(name: str) -> None:
    # Another process: what is imported once stays.
    code = (
        f"import sys; sys.modules['{name}'] = None\n"
        "from fedwsa.schema.compose import compose\n"
        "from server.callbacks.tracker import build_trackers\n"
        f"try: build_trackers(compose(['tracker={name}']))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = f"ConfigError tracker.{name}: {name} is not installed; pip install 'fedwsa[{name}]'\n"
    assert done.stdout == line
