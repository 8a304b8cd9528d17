"""Deployments in which each node has a folder of its own: both apps, with no processes between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Context, RecordDict
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import clients.app
import server.app
from fedwsa.config.component import ConfigError
from fedwsa.data.federated import open_federated
from fedwsa.schema.compose import compose
from tests.given.fedwsa import Nodes

pytestmark = pytest.mark.usefixtures("task_identity")
DIGITS = load_digits()
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write(folder: Path, part: str, chosen: range, classes: range = range(10)) -> int:
    """Some digits as ``PART/CLASS/*.png``; how many."""
    count = 0
    for i in chosen:
        label = int(DIGITS.target[i])
        if label in classes:
            (folder / part / NAMES[label]).mkdir(parents=True, exist_ok=True)
            pixels = np.round(DIGITS.images[i] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / NAMES[label] / f"{i}.png")
            count += 1
    return count


class Fleet(Nodes):
    """Nodes with configurations, in one process."""

    def __init__(self, node_configs: list[dict], run_config: dict) -> None:
        super().__init__(len(node_configs))
        self.contexts = {
            node: Context(1, node, own, RecordDict(), run_config)
            for node, own in zip(self.get_node_ids(), node_configs, strict=True)
        }

    def send_and_receive(self, messages, *, timeout=None):
        return [clients.app.app(m, self.contexts[m.metadata.dst_node_id]) for m in list(messages)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """The server's reference, and two nodes' folders with the classes 0 to 4 and 3 to 9."""
    root = tmp_path_factory.mktemp("digits")
    write(root / "reference", "train", range(60))
    write(root / "reference", "test", range(1400, 1797))
    counts = {
        "a": write(root / "a", "train", range(100, 700), range(5)),
        "b": write(root / "b", "train", range(700, 1300), range(3, 10)),
    }
    return root, counts


def run(
    folders, nodes: list[dict], extra: str = "", partition: str = "own", fleet: type = Fleet
) -> Path:
    root, _ = folders
    run_config = {
        "overrides": f"clients.count={len(nodes)} partition={partition} dataset=image_folder "
        f"dataset.path={root}/reference rounds=3 cache_dir={root}/cache {extra}"
    }
    context = Context(1, 0, {}, RecordDict(), run_config)
    server.app.app(fleet(nodes, run_config), context)
    return Path("runs") / "flower-1"


def nodes_of(root: Path, *names: str) -> list[dict]:
    return [{"partition-id": k, "data-path": str(root / n)} for k, n in enumerate(names)]


def test_nodes_learn_from_their_own_folders(folders, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root, counts = folders
    left = run(folders, nodes_of(root, "a", "b"), "wsa=on clients.table=true")
    history = pd.read_csv(left / "history.csv")
    assert history["failed"].isna().all()
    # Neither node has all digits, the model knows them all: ten classes, chance is 0.1.
    assert history["accuracy"].iloc[-1] > 0.5
    clients_table = pd.read_csv(left / "clients.csv")
    kept = {k: n - round(0.2 * n) for k, n in enumerate(counts.values())}
    assert dict(zip(clients_table["client"], clients_table["num-examples"], strict=True)) == kept
    partition = json.loads((left / "partition.json").read_text())
    assert partition["sizes"] == list(counts.values())
    assert not {"indices", "label_counts"} & set(partition)
    assert (left / "result.json").exists()
    assert (left / "config.yaml").exists()
    assert (left / "run.log").exists()


class Restarting(Fleet):
    """All nodes forget everything before each round, as processes that are started again do."""

    def send_and_receive(self, messages, *, timeout=None):
        for context in self.contexts.values():
            context.state = RecordDict()
        return super().send_and_receive(messages, timeout=timeout)


def test_a_node_that_is_started_again_goes_on(folders, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    models = []
    for kind in (Fleet, Restarting):
        left = run(folders, nodes_of(folders[0], "a", "b"), fleet=kind)
        history = pd.read_csv(left / "history.csv")
        assert history["failed"].isna().all()
        assert history["client_accuracy_mean"].notna().any()
        models.append(load_file(left / "model.safetensors"))
        shutil.rmtree(left)
    torch.testing.assert_close(*models, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "partition", "message"),
    [
        ({"data-path": "nowhere"}, "own", r"there are no image files in nowhere/train/CLASS/"),
        ({"data-path": None}, "own", r"this node has no data; start it with --node-config"),
        ({"partition-id": 0}, "own", r"^two nodes have partition 0$"),
        ({"partition-id": 2}, "own", r"partition-id=2: the run has clients\.count=2"),
        ({"partition-id": None}, "own", r"--node-config partition-id=NUMBER"),
        ({}, "iid", r"this node has data of its own \(data-path\)"),
    ],
)
def test_a_node_that_cannot_take_part_ends_the_run_in_one_line(
    folders, tmp_path, monkeypatch, change, partition, message
) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = nodes_of(folders[0], "a", "b")
    if partition == "iid":
        nodes[0].pop("data-path")
    nodes[1] = {k: v for k, v in {**nodes[1], **change}.items() if v is not None}
    with pytest.raises(ConfigError, match=message) as caught:
        run(folders, nodes, partition=partition)
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_data_unlike_the_server_s_are_refused(folders, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root, _ = folders
    write(tmp_path / "strange", "train", range(40))
    (tmp_path / "strange" / "train" / "zero").rename(tmp_path / "strange" / "train" / "cat")
    with pytest.raises(ConfigError, match=r"classes that the server's data lack: \['cat'\]"):
        run(folders, [*nodes_of(root, "a"), {"partition-id": 1, "data-path": "strange"}])
    (tmp_path / "large" / "train" / "one").mkdir(parents=True)
    Image.new("L", (9, 9)).save(tmp_path / "large" / "train" / "one" / "1.png")
    with pytest.raises(ConfigError, match=r"large has images of shape \(1, 9, 9\), the server"):
        run(folders, [*nodes_of(root, "a"), {"partition-id": 1, "data-path": "large"}])


def test_a_parquet_folder_may_be_a_node_s_too(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def parquet(name: str, part: str, chosen: range) -> None:
        write(tmp_path / "images", name, chosen)
        files = sorted((tmp_path / "images" / name).glob("*/*.png"))
        table = {
            "image": [{"bytes": f.read_bytes(), "path": f.name} for f in files],
            "label": [NAMES.index(f.parent.name) for f in files],
        }
        (tmp_path / name.split("-")[0]).mkdir(exist_ok=True)
        pd.DataFrame(table).to_parquet(tmp_path / name.split("-")[0] / f"{part}.parquet")

    parquet("reference-train", "train", range(40))
    parquet("reference-test", "test", range(1500, 1700))
    parquet("a-train", "train", range(100, 300))
    parquet("b-train", "train", range(300, 500))
    config = {
        "overrides": "clients.count=2 partition=own dataset=parquet dataset.path=reference "
        "rounds=1 local.epochs=1 cache_dir=cache"
    }
    fleet = Fleet(nodes_of(tmp_path, "a", "b"), config)
    server.app.app(fleet, Context(1, 0, {}, RecordDict(), config))
    assert json.loads(Path("runs/flower-1/partition.json").read_text())["sizes"] == [200, 200]


def test_a_table_may_be_a_node_s_too_if_its_columns_are_the_server_s(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)

    def table(name: str, count: int, classes: list[str], columns: list[str]) -> None:
        rows = pd.DataFrame(random.normal(size=(count, 3)), columns=list("abc"))
        rows["kind"] = [classes[i % len(classes)] for i in range(count)]
        rows[[*columns, "kind"]].to_csv(f"{name}.csv", index=False)

    table("reference", 40, ["ill", "well"], ["a", "b", "c"])
    table("a", 30, ["ill"], ["a", "b", "c"])
    table("b", 20, ["ill", "well"], ["a", "b", "c"])
    table("turned", 20, ["ill", "well"], ["c", "b", "a"])
    table("strange", 20, ["ill", "odd"], ["a", "b", "c"])
    config = {
        "overrides": "clients.count=2 partition=own dataset=csv dataset.path=reference.csv "
        "dataset.label_column=kind rounds=1 local.epochs=1 cache_dir=cache"
    }

    def play(*names: str) -> None:
        nodes = [{"partition-id": k, "data-path": f"{name}.csv"} for k, name in enumerate(names)]
        server.app.app(Fleet(nodes, config), Context(1, 0, {}, RecordDict(), config))

    with pytest.raises(ConfigError, match=r"data-path: turned.csv has other columns than the serv"):
        play("a", "turned")
    with pytest.raises(ConfigError, match=r"data-path: strange.csv, row 1: label odd is none of i"):
        play("a", "strange")
    play("a", "b")
    assert json.loads(Path("runs/flower-1/partition.json").read_text())["sizes"] == [30, 20]


def test_a_simulation_cannot_have_it(tmp_path) -> None:
    config = compose(["partition=own", f"cache_dir={tmp_path}"])
    with pytest.raises(ConfigError, match="for deployments"):
        open_federated(config.data_spec)
