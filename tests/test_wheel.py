"""What a person has who installs the wheel, and no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from fedwsa.launcher import APPS
from tests.given import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMMANDS = sorted(PROJECT["project"]["scripts"])
STRATEGY = """
from flwr.serverapp.strategy import FedAvg


class Mine(FedAvg):
    pass
"""


def run(words: list[str | Path], where: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"FEDWSA_CACHE": str(where / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(w) for w in words], cwd=where, env=env, capture_output=True, text=True, check=False
    )


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; what it depends on is borrowed from the tests' own."""
    folder = tmp_path_factory.mktemp("wheel")
    # by way of the source distribution, so that nothing comes along of an older build/
    build = [sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT]
    made = run(build, folder)
    assert made.returncode == 0, made.stderr[-2000:]
    empty = [sys.executable, "-m", "venv", "--without-pip", folder / "env"]
    assert run(empty, folder).returncode == 0
    [packages] = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    [wheel] = (folder / "dist").glob("*.whl")
    done = pip(folder / "env", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    assert done.returncode == 0, done.stderr
    return folder / "env"


def pip(environment: Path, *words: str) -> subprocess.CompletedProcess[str]:
    python = environment / "bin" / "python"
    return run([sys.executable, "-m", "pip", "--python", python, *words], environment)


def test_it_takes_one_name_in_site_packages_and_leaves_nothing_out(environment) -> None:
    [info] = environment.glob("lib/python*/site-packages/fedwsa-*.dist-info")
    files = {str(file) for file in PathDistribution(info).files or ()}
    inside = {f for f in files if not f.startswith(("../../../bin/", info.name))}
    assert {f.split("/")[0] for f in inside} == {"fedwsa"}
    assert "fedwsa/py.typed" in inside
    tracked = subprocess.run(
        ["git", "ls-files", "fedwsa", "server", "clients", "conf", "experiments"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    wanted = {f if f.startswith("fedwsa/") else f"fedwsa/_apps/{f}" for f in tracked}
    assert len(wanted) > 100
    assert wanted - inside == set()


def test_every_command_says_its_version(environment, tmp_path) -> None:
    assert len(COMMANDS) == 8
    for command in COMMANDS:
        said = run([environment / "bin" / command, "--version"], tmp_path)
        assert said.stdout == f"fedwsa {PROJECT['project']['version']}\n", said.stderr


def test_dependencies_are_met(environment) -> None:
    said = pip(environment, "check")
    assert said.returncode == 0, said.stdout


def test_runs_and_studies_work_where_there_is_no_checkout(environment, tmp_path) -> None:
    # With a strategy of one's own, and a yaml that names it, both in the working directory.
    (tmp_path / "mine.py").write_text(STRATEGY)
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    (tmp_path / "conf" / "strategy" / "mine.yaml").write_text("_target_: mine.Mine\nargs: {}\n")
    small = ["rounds=2", "clients.count=3", "local.epochs=1", "strategy=mine"]
    commands = environment / "bin"
    done = run([commands / "fedwsa", *small, "hydra.run.dir=run"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["algorithm"] == "Mine"
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["git_commit"] is None
    done = run([commands / "fedwsa-study", "smoke", "--only", "seed=0", *small[:2]], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = run([commands / "fedwsa-table", "run", "--format", "csv"], tmp_path)
    assert f",{result['accuracy']}," in shown.stdout
    for command in COMMANDS:
        said = run([commands / command, "--help"], tmp_path)
        assert said.stdout.count("\n") > 10, said.stderr
        assert ("strategy=mine\n" in said.stdout) == (command == "fedwsa")


def test_the_apps_lie_beside_the_package_in_a_checkout() -> None:
    assert APPS == ROOT


def test_console_scripts_are_functions_of_the_launcher() -> None:
    from fedwsa import launcher

    for entry in PROJECT["project"]["scripts"].values():
        module, _, name = entry.partition(":")
        assert module == "fedwsa.launcher"
        assert callable(getattr(launcher, name))
