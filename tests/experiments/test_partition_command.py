"""``fedwsa-partition`` as a person meets it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.commands import partition as command
from experiments.reports.partition_pictures import plot_labels
from fedwsa.data.federated import open_federated
from fedwsa.data.severity import severity
from fedwsa.schema.compose import compose


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDWSA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fedwsa-partition", *words])
    command.main()


def test_it_shows_and_leaves_the_partition_that_a_run_has(here, monkeypatch, capsys) -> None:
    words = ["partition=pathological", "clients.count=20", "seed=3"]
    run(monkeypatch, *words, "out=found")
    printed = capsys.readouterr().out
    left = json.loads((here / "found" / "partition.json").read_text())
    made = open_federated(compose(words).data_spec).partition
    assert left == json.loads(json.dumps(made.as_dict()))
    sizes = [len(indices) for indices in left["indices"]]
    assert re.search(r"clients\s+20\n", re.sub(" +\n", "\n", printed))
    assert f"{min(sizes)} to {max(sizes)}, median {np.median(sizes):g}" in printed
    assert "2 to 2, median 2 of 10" in printed
    for value in severity(left["label_counts"]).values():
        assert f"{value:.4f}" in printed
    assert np.asarray(Image.open(here / "found" / "partition.png").convert("L")).std() > 5
    saved = ["partition=from_file", "partition.path=found/partition.json", "clients.count=null"]
    run(monkeypatch, *saved, "out=again")
    again = json.loads((here / "again" / "partition.json").read_text())
    assert again["hash"] == left["hash"]


def test_samples_that_are_left_out_are_counted(here, monkeypatch, capsys) -> None:
    run(monkeypatch, "partition=size", "partition.sizes=[30,20]", "clients.count=null")
    assert "50, 1,387 left out" in capsys.readouterr().out
    assert len(list(here.glob("runs/partitions/*/*/partition.png"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("partition.alpha=-1", "partition.alpha: input should be greater than 0 (got -1)"),
        (
            "partition.alhpa=1",
            "partition.alhpa: unknown key; did you mean partition.alpha? fed",
        ),
        ("partition=size", "partition.sizes: must be given"),
        ("clients.count=null", "clients.count: partition=dirichlet needs a number; null is for"),
        ("--multirun seed=1,2", "--multirun: no such flag"),
        ("partition=from_file partition.path=no.json", "partition.path: cannot read no.json: No "),
        ("out=/proc/nowhere", "out: cannot write /proc/nowhere/partition.json: "),
        ("out=there", "out: there/partition.json is there already; name another file"),
        (
            "partition=iid clients.count=2000",
            "clients.count: 2000 clients, but there are only ",
        ),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    here: Path, monkeypatch, capsys, words: str, message: str
) -> None:
    (here / "there").mkdir()
    (here / "there" / "partition.json").touch()
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *words.split())
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"fedwsa-partition: {message}")
    assert not (here / "runs").exists()
    assert [f.name for f in (here / "there").iterdir()] == ["partition.json"]


def test_help_explains_the_groups_that_it_reads(here, monkeypatch, capsys) -> None:
    run(monkeypatch, "--help")
    printed = capsys.readouterr().out
    for text in ("out=FOLDER", "  partition=natural\n", "min_samples: 10", "dataset=digits  (def"):
        assert text in printed
    assert "Group strategy" not in printed


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (3, 62), (100, 10), (101, 10), (1500, 3)])
def test_every_size_of_partition_has_its_picture(here: Path, clients: int, classes: int) -> None:
    counts = np.random.default_rng(0).integers(0, 9, (clients, classes)) + np.eye(clients, classes)
    partition = {
        "name": "iid",
        "arguments": {"clients": clients, "seed": 0},
        "samples": int(counts.sum()),
        "severity": severity(counts + 1),
        "label_counts": (counts.astype(int) + 1).tolist(),
    }
    plot_labels(partition, here / "p.png")
    picture = np.asarray(Image.open(here / "p.png").convert("L"))
    assert picture.std() > 5
    assert max(picture.shape) < 3000
