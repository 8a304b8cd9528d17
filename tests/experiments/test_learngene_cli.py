"""The command ``fedwsa-learngene``: its files, its benchmark, its refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.commands.learngene import main
from experiments.reports.statistics import interval
from fedwsa.config.component import ConfigError
from fedwsa.data.examples import Examples
from fedwsa.data.federated import public_share
from fedwsa.data.images import ImageData
from fedwsa.learngene.fit import Report
from fedwsa.learngene.gene import Learngene
from fedwsa.learngene.progress import Watcher
from fedwsa.models.files import load_network, save_network
from tests.given.architecture import component, network

SMALL = [
    "model=mlp",
    "model.width=0.5",
    "init.public=0.3",
    "init.count=2",
    "pretraining.teach.steps=5",
    "pretraining.learn.steps=5",
    "pretraining.fit.steps=3",
]


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedwsa-learngene", *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"cache_dir={tmp_path_factory.getbasetemp() / 'learngene-cache'}"


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_distil_then_init_leaves_a_network_that_can_teach(
    inside: Path, cache: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "distil", "init.file=w.safetensors", cache, *SMALL) == 0
    gene = Learngene.load(inside / "w.safetensors")
    assert gene.facts["data"]["examples"] == round(0.3 * 1437)
    assert gene.facts["flops"]["teacher"] > 0
    size = ["size={width: 0.25, depth: 3}", "out=m.safetensors"]
    assert command(monkeypatch, "init", "init.file=w.safetensors", cache, *SMALL, *size) == 0
    saved = load_network(inside / "m.safetensors")
    assert (saved.model.arguments, saved.shape) == ({"width": 0.25, "depth": 3}, (1, 8, 8))
    assert saved.classes == 10
    assert "on the test set" in capsys.readouterr().out
    # A teacher of another size than the model: what is selected from is the teacher.
    taught = ["init=selection", "pretraining.teacher=m.safetensors"]
    small = [w for w in SMALL if not w.startswith("init.count")]
    words = ["init.file=s.safetensors", cache, *small, *taught]
    assert command(monkeypatch, "distil", *words) == 0
    kept = Learngene.load(inside / "s.safetensors")
    assert kept.model == saved.model
    assert kept.facts["teacher"]["model"] == saved.model.model_dump(by_alias=True)
    assert torch.equal(kept.tensors["head.weight"], saved.module.state_dict()["head.weight"])
    part = ["size={width: 0.125, depth: 2}", "out=p.safetensors"]
    assert command(monkeypatch, "init", *words, *part) == 0
    assert sorted(p.name for p in inside.iterdir()) == [
        "m.safetensors",
        "p.safetensors",
        "s.safetensors",
        "w.safetensors",
    ]


def test_distil_goes_on_where_it_was_interrupted_and_knows_its_teacher(
    inside: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the auxiliary network's third step: the teacher is not trained again."""
    words = ["distil", cache, *SMALL]
    assert command(monkeypatch, *words, "init.file=whole.safetensors") == 0
    plain = Watcher.__call__
    trained: list[str] = []

    def watch(self: Watcher, name: str, steps: int) -> Report:
        report = plain(self, name, steps)

        def stop(step: int, loss: float) -> None:
            trained.append(name)
            if trained.count("wave") == 3:
                raise KeyboardInterrupt
            report(step, loss)

        return stop

    monkeypatch.setattr(Watcher, "__call__", watch)
    assert command(monkeypatch, *words, "init.file=w.safetensors") == 130
    assert trained.count("teacher") == 5
    assert not (inside / "w.safetensors").exists()
    trained[:] = ["wave"] * 3
    assert command(monkeypatch, *words, "init.file=w.safetensors") == 0
    assert trained.count("teacher") == 0
    left, right = (load_file(inside / f"{n}.safetensors") for n in ("whole", "w"))
    assert all(torch.equal(left[k], right[k]) for k in left.keys() | right.keys())
    assert not list(inside.glob("*.part"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill"], "distill: no such command; there are distil, init, bench"),
        (["distil"], "init.file: must be given, the file of the learngene"),
        (["distil", "init.file=old.safetensors"], "old.safetensors is there already"),
        (["distil", "init.file=a", "init.public=0"], "there are no examples to learn from"),
        (["distil", "init.file=a", "classes=[0,30]"], "classes: there are only 10"),
        (["distil", "init.file=a", "model=vit", "model.width=0.3"], "no heads of 24; take a"),
        (["distil", "init.file=a", "sizes.S.width=0"], "sizes.S.width: input should be greater"),
        (
            ["distil", "init.file=a", "sizes.S.width=0.333"],
            "units have no common divisor",
        ),
        (["distil", "init.file=a", "init=standard"], "init=standard learns nothing; take wave"),
        (["distil", "init.file=old.safetensors/a"], "init.file: cannot write"),
        (["distil", "init.file=.", "init.public=0.5"], "init.file: . is a folder"),
        (["distil", "init.file=a", "--cfg", "job"], "--cfg: no such flag; --help shows"),
        (["distil", "init.file=a", "init.cout=3"], "init.cout: unknown key"),
        (["distil", "init.file=a", "init.count=0"], "init.count: input should be greater"),
        (["distil", "init.file=a", "pretraining.teacher=none"], "there is no file none"),
        (["init", "init.file=a", "out=b"], "size: must be one of S, M, L, or arguments"),
        (["init", "init.file=a", "out=b", "size=S"], "there is no learngene file a"),
        (["init", "init.file=a", "size=S"], "out: must be given"),
        (["init", "init.file=old.safetensors", "out=b", "size=S"], "is damaged, or no safetensors"),
        (["bench", "bench.methods=[wav]"], "must be one of standard, selection, sws, tleg"),
        (["bench", "bench.images=9999"], "bench.images: only "),
        (["bench", "pretraining.teacher=m"], "the benchmark trains a teacher for each seed"),
        (["bench", "bench.widths=[0]"], "bench.widths.0: input should be greater than 0"),
        (["bench", "model=vit", "bench.widths=[0.3]"], "bench.widths, bench.depths: width 0.3"),
        (["bench", "bench.folder=old.safetensors"], "bench.folder: cannot write"),
        (["bench", "bench.transfer=classes"], "needs classes, those to learn from"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    inside: Path,
    cache: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    (inside / "old.safetensors").write_bytes(b"something")
    folder = [f"bench.folder={inside / 'bench'}"] if words[0] == "bench" else []
    assert command(monkeypatch, words[0], *folder, cache, *words[1:]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fedwsa-learngene: ")
    assert error.count("\n") == 1
    assert (inside / "old.safetensors").read_bytes() == b"something"
    assert [p.name for p in inside.iterdir()] == ["old.safetensors"]


BENCH = [
    *SMALL,
    "bench.seeds=[0]",
    "bench.widths=[0.25,0.5]",
    "bench.depths=[2,3]",
    "bench.epochs=[0,1]",
    "bench.long=3",
    "bench.images=200",
    "pretraining.learn.steps=40",
]


def test_the_benchmark_gives_all_methods_the_same_operations_and_goes_on(
    inside: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(monkeypatch, "bench", "bench.folder=b", cache, *BENCH) == 0
    results = pd.read_csv(inside / "b" / "results-0.csv")
    # Four sizes at two epochs; standard networks are trained three times as long, too.
    assert results.groupby("method").size().to_dict() == {
        "standard": 12,
        **dict.fromkeys(("selection", "sws", "tleg", "wave", "direct"), 8),
        **dict.fromkeys(("random-templates", "untrained-scalers"), 8),
    }
    # An epoch is three steps of 64 of the 200 images, at three times a forward pass.
    one = results[results["epoch"] == 1].set_index(["method", "width", "depth"])["flops"]
    weights = 64 * 50 + 50 * 50 + 50 * 10
    images = 64 * 64 * 50  # nothing is sent on to the images themselves
    assert (one[:, 0.25, 2] == 3 * 2 * (3 * 64 * weights - images)).all()
    long = results[(results["method"] == "standard") & (results["epoch"] == 3)]
    assert long["flops"].tolist() == (3 * one["standard"]).tolist()
    costs = pd.read_csv(inside / "b" / "costs-0.csv").set_index("method")
    total = costs["learn_flops"] + costs["fit_flops"]
    assert total["standard"] == total["selection"] == costs["numbers"]["standard"] == 0
    for method in ("sws", "tleg", "direct"):
        assert 0.9 * total["wave"] < total[method] <= total["wave"]
    # Direct stores the networks: 64 pixels, 50 or 100 units, 10 classes.
    stored = [65 * w + (d - 1) * (w * w + w) + 10 * (w + 1) for w in (50, 100) for d in (2, 3)]
    assert costs["numbers"]["direct"] == sum(stored)
    assert (costs["parameters"] == sum(stored)).all()
    assert total["random-templates"] == total["wave"] - costs["learn_flops"]["wave"]
    assert total["untrained-scalers"] == costs["learn_flops"]["wave"]
    assert costs["teacher_flops"]["random-templates"] == 0
    text = (inside / "b" / "summary.md").read_text()
    assert "numbers stored" in text
    assert "1 against 3" in text
    for picture in ("grid.png", "operations.png"):
        assert (inside / "b" / picture).stat().st_size > 10_000
    # The rows of a size are lost: only they are made again, and are the same.
    lost = (results["method"] == "tleg") & (results["width"] == 0.25) & (results["depth"] == 2)
    results[~lost].to_csv(inside / "b" / "results-0.csv", index=False)
    assert command(monkeypatch, "bench", "bench.folder=b", cache, *BENCH) == 0
    again = pd.read_csv(inside / "b" / "results-0.csv")
    key = ["method", "width", "depth", "epoch"]
    pd.testing.assert_frame_equal(
        again.sort_values(key, ignore_index=True), results.sort_values(key, ignore_index=True)
    )
    other = [*BENCH, "bench.lr=0.1"]
    assert command(monkeypatch, "bench", "bench.folder=b", cache, *other) == 1


@pytest.mark.parametrize("transfer", ["digits", "classes"])
def test_the_benchmark_can_train_for_other_images_than_the_templates_saw(
    inside: Path, cache: str, monkeypatch: pytest.MonkeyPatch, transfer: str
) -> None:
    words = [*BENCH, f"bench.transfer={transfer}", "bench.methods=[standard,wave]"]
    words += ["classes=[0,1,2,3,4,5]"] if transfer == "classes" else []
    assert command(monkeypatch, "bench", "bench.folder=b", cache, *words) == 0
    results = pd.read_csv(inside / "b" / "results-0.csv")
    # Four sizes: three epochs counted for standard networks, two for WAVE and its two ablations.
    assert len(results) == 4 * (3 + 3 * 2)
    assert results["accuracy"].between(0, 1).all()


def test_the_interval_is_student_s() -> None:
    """Of 1, 2, 3: mean 2, s = 1, t(2; 0.975) = 4.302653, half width 4.302653/√3."""
    mean, half = interval(np.array([1.0, 2.0, 3.0]))
    assert (mean, round(half, 5)) == (2.0, round(4.302653 / 3**0.5, 5))
    assert np.isnan(interval(np.array([1.0]))[1])


def test_the_public_share_is_keyed_and_sorted() -> None:
    chosen = public_share(100, 0.3, seed=1)
    assert len(chosen) == 30
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert torch.equal(chosen, public_share(100, 0.3, seed=1))
    assert not torch.equal(chosen, public_share(100, 0.3, seed=2))


def test_network_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    file, model = tmp_path / "m.safetensors", network("mlp.mlp")
    one = Examples(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1).long())
    data = ImageData(one, one, 7, [0.1, 0.2, 0.3], [1.0, 1.0, 1.0])
    save_network(file, model.state_dict(), component("mlp.mlp"), data)
    saved = load_network(file)
    assert (saved.model, saved.shape, saved.classes) == (component("mlp.mlp"), (3, 32, 32), 7)
    assert saved.data == {"kind": "images", "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    tensors = {k: t for k, t in load_file(file).items() if k != "head.bias"}
    save_network(file, tensors, component("mlp.mlp"), data)
    with pytest.raises(ConfigError, match=r"does not fit its network: head\.bias"):
        load_network(file)
    save_file(tensors, file)
    with pytest.raises(ConfigError, match="is no network of ours, or damaged"):
        load_network(file)
