"""The command line as a person meets it: its help, its errors, a sweep with its comparison."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from experiments.commands import simulate
from tests.given.commands import COMMAND, fedwsa

NO_RAY = "runtime=flower"  # what is refused needs none; starting one takes seconds


def test_help_explains_groups_keys_and_examples(tmp_path: Path) -> None:
    done = fedwsa(tmp_path, "--help")
    assert done.returncode == 0
    for text in (
        "wsa=off,on seed=0,1,2",
        "  rounds: 20\n",
        "  seed: 0                # keys every random draw",
        "  model=mlp  (default)\n      width: 1.0 ",
        "  partition=pathological\n      classes_per_client: 2\n",
        "fusion: moments    # moments, mean_variance, mean_std",
        "strategy.args",
    ):
        assert text in done.stdout
    assert "hydra:" not in done.stdout
    # Hydra's own; what a strategy wraps is named by its path.
    assert not re.search(r"^ {0,6}_target_", done.stdout, re.MULTILINE)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rounds=0 clients.fraction=0", "rounds: input should be greater than 0 (got 0); clients."),
        ("--resume=there", "unrecognized arguments: --resume=there; keys have no dashes, as in"),
        ("clients.cuont=3", "clients.cuont: unknown key; did you mean clients.count?"),
        (
            "model=transformer",
            "model=transformer: no such option; allowed: char_lstm, ",
        ),
        ("partition.alpha=-1", "partition.alpha: input should be greater than 0 (got -1)"),
        ("model=vgg11", "model: vgg11 needs images of at least 32x32 pixels"),
        ("clients.count=5000", "clients.count: 5000 clients, but there are only 1437 samples"),
        (
            "partition=pathological partition.classes_per_client=11",
            "partition.classes_per_client: 11 classes per client, but the data has only 10",
        ),
        ("dataset=parquet dataset.path=nowhere", "dataset.path: there is no file nowhere/train"),
        ("strategy.args.eta=1", "strategy.args.eta: FedAvg has no such argument; it takes frac"),
        ("strategy._target_=flwr.nothing", "strategy._target_: flwr has no nothing"),
        ("strategy.args={fraction_train:2}", "strategy.args.fraction_train: must be above 0"),
        ("strategy.args.min_train_nodes=11", "strategy.args.min_train_nodes: there are only 10"),
        ("strategy._target_=flwr.serverapp.strategy.Strategy", "strategy.args: TypeError: Can't"),
        ("model=vgg8 model.nrm=batch", "model.nrm: unknown key; did you mean model.norm?"),
        ("model.width=1e9", "model: RuntimeError: "),
        ("wsa.layers=^1", "cannot read 'wsa.layers=^1'; a value with special characters needs"),
        ("wsa=on wsa.align=after strategy=fedavgm", "wsa: align='after' does not go with FedAvgM"),
        ("wsa=on wsa.layers=conv", "wsa.layers: no weight tensor matches layers='conv'; those"),
        ("wsa=on wsa.target=fixed wsa.scope=no.safetensors", "wsa.scope: cannot use no.safe"),
        ("hydra.run.dir=/proc/nowhere", "cannot use /proc/nowhere: "),
        ("cache_dir=/proc/nowhere", "cache_dir: cannot write /proc/nowhere"),
        ("runtime.workers=0", "runtime.workers: input should be greater than 0 (got 0)"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
) -> None:
    # The entry point itself, in this process: a new one would spend five seconds on imports.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDWSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["fedwsa", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        simulate.main()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith(f"fedwsa: {message}")
    assert not (tmp_path / "runs").exists()


def test_an_error_has_exit_code_one_and_a_traceback_only_on_request(tmp_path: Path) -> None:
    done = fedwsa(tmp_path, "rounds=0", NO_RAY)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "fedwsa: rounds: input should be greater than 0 (got 0)\n"
    done = fedwsa(tmp_path, "rounds=0", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


INTERRUPTS = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize("command", ["fedwsa", "fedwsa-merge", "fedwsa-plot", "fedwsa-study"])
def test_ctrl_c_during_imports_is_one_line(command: str, tmp_path: Path) -> None:
    # As if it were pressed when the command comes to this package.
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text(INTERRUPTS)
    done = subprocess.run(
        [COMMAND.with_name(command), "x"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, f"{command}: interrupted\n")


@pytest.mark.parametrize(
    ("module", "words", "line"),
    [
        (
            "commands.table",
            "x --nonsense",
            "fedwsa-table: unrecognized arguments: --nonsense; --help",
        ),
        ("commands.plot", "", "fedwsa-plot: the following arguments are required: RUNS; --help"),
        (
            "commands.study",
            "smoke --workers 0",
            "fedwsa-study: argument --workers: must be a number",
        ),
        (
            "commands.merge",
            "a b --samples many",
            "fedwsa-merge: argument --samples: invalid int value",
        ),
        ("deploy.keys", "keys", "python -m experiments.deploy.keys: the following arguments are"),
    ],
)
def test_a_wrong_flag_is_one_line(module, words, line, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["it", *words.split()])
    with pytest.raises(SystemExit) as ended:
        import_module(f"experiments.{module}").main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_a_refused_run_removes_only_what_it_made(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "empty"
    mine.mkdir(parents=True)
    for folder in (mine, mine.parent):
        os.utime(folder, (0, 0))
    done = fedwsa(tmp_path, "rounds=0", "hydra.run.dir=mine/empty", NO_RAY)
    assert done.returncode == 1
    assert mine.is_dir()


@pytest.mark.slow
def test_a_failing_run_of_a_sweep_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    done = fedwsa(
        tmp_path, "--multirun", "clients.count=3000,2", "rounds=1", "local.epochs=1", "wsa=on"
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "fedwsa: run 0: clients.count: 3000 clients, but there are only 1437 samples",
        "fedwsa: 1 of the 2 runs failed: 0",
    ]
    assert re.search(r"^ 3000 +0/1 +failed", done.stdout, re.M)
    assert re.search(r"^ 2 +1 +\d+\.\d{2} ", done.stdout, re.M)


@pytest.mark.slow
def test_a_sweep_over_runtimes_and_addresses_fails_where_nobody_answers(tmp_path: Path) -> None:
    done = fedwsa(
        tmp_path,
        *("--multirun", "runtime=ray,flower,ray", "runtime.address=127.0.0.1:9,null,localhost:9"),
        *("rounds=1", "clients.count=2", "local.epochs=1"),
    )
    assert done.returncode == 1
    nobody = "runtime.address=HOST:9: nobody answers there"
    reasons = {
        **{i: nobody.replace("HOST", "127.0.0.1") for i in (0, 6)},
        **dict.fromkeys((3, 5), "runtime: address needs runtime=ray"),
        **{i: nobody.replace("HOST", "localhost") for i in (2, 8)},
    }
    *lines, last = done.stderr.splitlines()
    assert len(lines) == len(reasons), done.stderr
    for line, (number, reason) in zip(lines, sorted(reasons.items()), strict=True):
        assert line.startswith(f"fedwsa: run {number}: {reason}")
    assert last == "fedwsa: 6 of the 9 runs failed: 0, 2, 3, 5, 6, 8"
    (folder,) = tmp_path.glob("runs/*/*-sweep")
    assert {int(file.parent.name) for file in folder.glob("*/result.json")} == {1, 4, 7}
    # The same run on the same runtime, with another between them.
    first, again = (load_file(folder / n / "model.safetensors") for n in ("1", "7"))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_a_sweep_ends_with_a_comparison_on_the_same_cohorts(tmp_path: Path) -> None:
    done = fedwsa(
        tmp_path,
        "--multirun",
        *("wsa=off,on", "rounds=2", "clients.count=4", "clients.fraction=0.5", "local.epochs=1"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rounds = re.findall(r"^(FedAvg\S*)\s+round\s+(\d)/2  accuracy 0\.\d{4}", done.stdout, re.M)
    assert rounds == [("FedAvg", "1"), ("FedAvg", "2"), ("FedAvg+WSA", "1"), ("FedAvg+WSA", "2")]
    assert "cohorts: the same in all runs of a seed" in done.stdout
    (folder,) = tmp_path.glob("runs/*/*-sweep")
    table = pd.read_csv(folder / "comparison.csv")
    assert table["wsa"].tolist() == ["off", "on"]
    last = [float(a) for a in re.findall(r"accuracy, global test set +(0\.\d+)", done.stdout)]
    assert table["accuracy"].round(4).tolist() == last
    for picture in (
        folder / "comparison.png",
        folder / "0" / "curves.png",
        folder / "1" / "partition.png",
    ):
        assert np.asarray(Image.open(picture).convert("L")).std() > 5  # something is drawn
