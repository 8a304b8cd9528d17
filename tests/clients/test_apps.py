"""The two apps as a deployment has them: module-level, composed from run_config, no runtime."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from flwr.app import Message, MessageType, RecordDict

import clients.app
import server.app
from fedwsa.config.component import ConfigError
from server.rounds import RunError
from tests.given.apps import Loopback, context

pytestmark = pytest.mark.usefixtures("task_identity")


def run(folder: Path, overrides: str) -> pd.DataFrame:
    run_config = {"overrides": f"clients.count=4 local.epochs=1 cache_dir={folder}/c {overrides}"}
    server.app.app(Loopback(4, run_config), context({}, run_config))
    return pd.read_csv(folder / "runs" / "flower-1" / "history.csv")


def test_both_apps_compose_the_run_from_overrides(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = run(
        tmp_path,
        "wsa=on model=cnn dataset.augment=crop_flip rounds=3 evaluation.every=2 "
        "evaluation.clients_every=2 clients.fraction=0.5",
    )
    # Every second round, and after the last.
    assert table["accuracy"].notna().tolist() == [False, True, True]
    assert table["client_accuracy_mean"].notna().tolist() == [False, True, True]
    assert [len(c.split()) for c in table["cohort"]] == [2, 2, 2]
    assert (tmp_path / "runs" / "flower-1" / "scopes.csv").exists()


def test_augmentation_changes_what_is_learned_and_dropout_repeats(tmp_path, monkeypatch) -> None:
    losses = {}
    for name, overrides in {
        "plain": "dataset.augment=none",
        "augmented": "dataset.augment=crop_flip",
        "dropout": "model=cnn_pfl model.width=0.25",
        "dropout again": "model=cnn_pfl model.width=0.25",
    }.items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        monkeypatch.chdir(folder)
        losses[name] = run(folder, f"rounds=1 {overrides}")["train_loss"].item()
    assert losses["plain"] != losses["augmented"]
    assert losses["dropout"] == losses["dropout again"]


def test_sizes_reach_both_apps_and_nodes_say_theirs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = run(
        tmp_path,
        "strategy=fedrolex wsa=on rounds=2 clients.sizes=speed 'clients.speeds=[0.2,1.0]' "
        "evaluation.clients_every=2",
    )
    assert table["failed"].isna().all()
    assert table["client_accuracy_mean"].notna().tolist() == [False, True]
    sizes = pd.read_csv(tmp_path / "runs" / "flower-1" / "sizes.csv")
    assert sizes["clients"].sum() == 2 * 4
    run_config = {"overrides": f"clients.count=2 clients.sizes=[S,L] cache_dir={tmp_path}/c"}
    query = Message(RecordDict(), 2, MessageType.QUERY)
    said = clients.app.app(query, context({"partition-id": 1}, run_config))
    assert dict(said.content["config"]) == {"partition-id": 1, "size": "L"}


def test_clients_too_small_for_a_hold_out_train_and_are_not_scored(tmp_path, monkeypatch) -> None:
    # 1437 digits over 400 clients: three or four each, so nobody holds anything out.
    monkeypatch.chdir(tmp_path)
    run_config = {
        "overrides": "clients.count=400 clients.fraction=0.02 partition=iid rounds=1 "
        f"local.epochs=1 cache_dir={tmp_path}/c"
    }
    server.app.app(Loopback(400, run_config), context({}, run_config))
    table = pd.read_csv(tmp_path / "runs" / "flower-1" / "history.csv")
    assert len(table["cohort"][0].split()) == 8
    assert table["client_accuracy_mean"].isna().all()
    assert table["failed"].isna().all()


class PowerCut(RuntimeError):
    pass


class Cut(Loopback):
    """A grid under a server that dies in its third round."""

    def send_and_receive(self, messages, *, timeout=None):
        asked = list(messages)
        config = asked[0].content.get("config", {})
        if config.get("server-round", 0) >= 3:
            raise PowerCut
        return super().send_and_receive(asked, timeout=timeout)


REMEMBERED = "strategy=fedadam wsa=on rounds=5 clients.fraction=0.5"


def test_a_server_that_died_goes_on_with_other_nodes_contexts(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = f"clients.count=4 local.epochs=1 cache_dir={tmp_path}/c {REMEMBERED}"
    begun = {"overrides": f"{common} checkpoint.every=1"}
    with pytest.raises(RunError, match="PowerCut"):
        server.app.app(Cut(4, begun), context({}, begun))
    again = {**begun, "resume": "runs/flower-1"}
    server.app.app(Loopback(4, again), context({}, again))
    (whole := tmp_path / "whole").mkdir()
    monkeypatch.chdir(whole)
    plain = {"overrides": common}
    server.app.app(Loopback(4, plain), context({}, plain))
    one, other = (folder / "runs" / "flower-1" for folder in (tmp_path, whole))
    for file in ("history.csv", "scopes.csv", "model.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    with pytest.raises(ConfigError, match="resume: the run in runs/flower-1 is finished"):
        server.app.app(Loopback(4, again), context({}, {**plain, "resume": "runs/flower-1"}))


@pytest.mark.parametrize(
    ("strategy", "name"), [("scaffold", "Scaffold"), ("moon", "Moon"), ("fedper", "FedPer")]
)
def test_what_nodes_remember_no_server_s_checkpoint_has(
    strategy, name, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"checkpoint.every: with {name} the nodes"):
        run(tmp_path, f"strategy={strategy} checkpoint.every=1")
    assert not (tmp_path / "runs").exists()


def test_clients_refuse_shares_that_are_not_the_server_s(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Written after this process began: what it makes is not kept, and each side makes its own.
    (tmp_path / "unseeded.py").write_text(
        "import numpy as np\nmade = []\n\n\ndef shares(labels, clients, seed):\n"
        "    made.append(None)\n"
        "    return np.array_split(np.roll(np.arange(len(labels)), len(made)), clients)\n"
    )
    with pytest.raises(ConfigError, match=r"^partition: the data or their shares here are not"):
        run(tmp_path, "partition=iid partition._target_=unseeded.shares rounds=1")
