"""What a Flower App's folder and a command line say, and what is refused in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedwsa.apps.folder import AppFolder, federation_of
from fedwsa.config.component import ConfigError
from fedwsa.descendants import family
from tests.given.app_folder import project_with, write_app
from tests.given.processes import all_end, started

RUN = [sys.executable, "-c", "from fedwsa.launcher import run; run()"]
LOCAL = """
[tool.flwr.federations]
default = "small"

[tool.flwr.federations.small]
options.num-supernodes = 5
options.backend.client-resources.num-cpus = 1
options.backend.init-args.num_cpus = 2

[tool.flwr.federations.far]
address = "127.0.0.1:9093"
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return write_app(tmp_path / "app", pyproject=project_with(LOCAL))


def test_what_stands_in_the_folder(app: Path) -> None:
    found = AppFolder.read(app)
    assert (found.server, found.client) == ("madeapp.server_app:app", "madeapp.client_app:app")
    assert (found.identity, found.version) == ("somebody/made-app", "1.0.0")
    assert found.config["model.bias"] is True  # nested tables are flat


def test_run_config_is_read_as_flower_reads_it(app: Path, tmp_path: Path) -> None:
    found = AppFolder.read(app)
    words = ["num-server-rounds=5 learning-rate=0.1", 'greeting="good day" model.bias=false']
    expected = {"num-server-rounds": 5, "learning-rate": 0.1, "greeting": "good day"}
    assert found.configured(words) == {**expected, "model.bias": False}
    (tmp_path / "more.toml").write_text("num-server-rounds = 3\n[model]\nbias = false\n")
    expected = {"num-server-rounds": 3, "model.bias": False}
    assert found.configured([str(tmp_path / "more.toml")]) == expected


def test_the_federation_comes_from_the_folder_flower_or_the_command_line(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = AppFolder.read(app)
    own = federation_of(found, None, [])
    assert (own.supernodes, own.cpus, own.gpus, own.init) == (5, 1, None, {"num_cpus": 2})
    words = ["num-supernodes=7 client-resources-num-gpus=0.5", "verbose=true"]
    changed = federation_of(found, "small", words)
    assert (changed.supernodes, changed.cpus, changed.gpus, changed.verbose) == (7, 1, 0.5, True)
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "local"\n[superlink.mine]\noptions.num-supernodes = 11\n'
    )
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert federation_of(found, "mine", []).supernodes == 11
    plain = AppFolder.read(write_app(tmp_path / "plain"))
    assert federation_of(plain, None, []).supernodes is None


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("smal", [], r"there is no federation smal; is it small\?"),
        ("far", [], "federation far is a SuperLink at 127.0.0.1:9093, where `flwr run` goes"),
        (None, ["num-supernode=3"], r"there is no num-supernode; is it num-supernodes\?"),
        (None, ["num-supernodes=2.5"], "num-supernodes cannot be 2.5"),
        (None, ["num-supernodes=true"], "num-supernodes cannot be True"),
        (None, ['backend="ray2"'], "backend cannot be 'ray2', but ray"),
        (None, ["seven"], "'seven' are no pairs as in"),
        (None, ["none.toml"], r"cannot read none\.toml: No such file"),
    ],
)
def test_a_federation_that_cannot_be_is_refused(
    name: str | None, words: list[str], message: str, app: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        federation_of(AppFolder.read(app), name, words)


def said(*words: str | Path, cwd: Path) -> tuple[int, str, str]:
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}
    command = [*RUN, *map(str, words)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


BROKEN = {
    "no folder": ({}, ["nowhere"], r"nowhere is no folder: an app is a folder as"),
    "no project": ({}, ["."], r"has no pyproject\.toml: an app is a folder as"),
    "no toml": ({"pyproject": "[project\n"}, ["app"], r"pyproject\.toml: .*at line 1"),
    "no components": ({"pyproject": "[project]\n"}, ["app"], r"\[tool\.flwr"),
    "does not import": (
        {"task": "import nonsense\n"},
        ["app"],
        r"madeapp\.client_app:app: ModuleNotFoundError: No module named 'nonsense' "
        r"\(app/madeapp/task\.py:1\)",
    ),
    "has no such app": (
        {"client_app": "other = 3\n"},
        ["app"],
        r"madeapp\.client_app:app: AttributeError: Unable to load attribute app from module "
        r"madeapp\.client_app$",
    ),
    "is no app": ({"client_app": "app = 3\n"}, ["app"], "client_app:app is a int, no ClientApp"),
    "has no such key": (
        {},
        ["app", "-c", "learning-rat=1"],
        r"--run-config: the app has no learning-rat; is it learning-rate\?",
    ),
    "no count": ({}, ["app", "-n", "0"], "0 is no whole number above 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_app_ends_in_one_line_before_anything_is_started(
    case: str, tmp_path: Path
) -> None:
    changed, words, message = BROKEN[case]
    if words[0] == "app":
        write_app(tmp_path / "app", **changed)
    before = sorted(tmp_path.rglob("*.json"))
    code, out, errors = said(*words, cwd=tmp_path)
    assert code == 1
    assert out == ""
    [line] = [line for line in errors.splitlines() if "supernodes, played by" not in line]
    assert line.startswith("fedwsa-run: ")
    assert re.search(message, line), line
    assert sorted(tmp_path.rglob("*.json")) == before


@pytest.mark.slow
def test_an_app_runs_as_in_flower_s_own_simulation(tmp_path: Path) -> None:
    write_app(tmp_path / "app")
    words = ["app", "-n", "3", "-c", "num-server-rounds=3 model.bias=false least=3"]
    left = {}
    for engine in ("fedwsa", "flower"):
        place = tmp_path / engine
        place.mkdir()
        command = [tmp_path / words[0], *words[1:], "--engine", engine]
        resources = ["--federation-config", "client-resources-num-cpus=1"]
        code, out, errors = said(*command, *resources, cwd=place)
        assert code == 0, errors
        assert out.splitlines()[0] == "hello"
        assert "[ROUND 3/3]" in errors
        left[engine] = json.loads((place / "left.json").read_text())
    ours, theirs = left.values()
    assert ours.pop("weights") == [pytest.approx(w, rel=1e-12) for w in theirs.pop("weights")]
    for kind in ("train", "evaluate"):  # sums in the order in which replies come, there
        assert len(ours[kind]) == 3
        pairs = zip(ours.pop(kind), theirs.pop(kind), strict=True)
        assert all(one == pytest.approx(other) for one, other in pairs)
    assert ours == theirs
    assert ours["config"]["num-server-rounds"] == 3
    assert ours["app"] == [
        "somebody/made-app",
        "1.0.0",
        {"model.bias": False, "num-server-rounds": 3, "least": 3},
    ]
    assert ours["nodes"] == 3


@pytest.mark.slow
def test_what_the_server_raises_is_shown_from_its_own_line_on(tmp_path: Path) -> None:
    """And what it ends with is what the command ends with."""
    server = """
        from flwr.serverapp import ServerApp

        app = ServerApp()


        @app.main()
        def main(grid, context):
            if context.run_config["greeting"] == "leave":
                raise SystemExit(7)
            raise ValueError("mine")
    """
    write_app(tmp_path / "app", server_app=server)
    code, _, errors = said("app", cwd=tmp_path)
    assert code == 1
    trace = errors[errors.index("Traceback") :].splitlines()
    assert trace[1].endswith('server_app.py", line 11, in main')
    assert trace[-2:] == [
        "ValueError: mine",
        f"fedwsa-run: the app in {tmp_path / 'app'} raised ValueError",
    ]
    assert said("app", "-c", 'greeting="leave"', cwd=tmp_path)[0] == 7


@pytest.mark.slow
def test_ctrl_c_while_ray_starts_or_clients_work_is_one_line_and_leaves_nobody(
    tmp_path: Path,
) -> None:
    client = """
        import time
        from pathlib import Path

        from flwr.clientapp import ClientApp

        app = ClientApp()


        @app.train()
        def train(message, context):
            Path("working").touch()
            time.sleep(600)
    """
    write_app(tmp_path / "app", client_app=client)
    for moment in (lambda: (tmp_path / "working").exists(), lambda: raylet(run.pid)):
        with started([*RUN, "app"], cwd=tmp_path, stderr=subprocess.PIPE) as run:
            end = time.monotonic() + 240
            while not moment():
                assert run.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            processes = family(run.pid)
            run.send_signal(signal.SIGINT)
            errors = run.communicate(timeout=240)[1]
        assert run.returncode == 130
        assert "Traceback" not in errors
        assert errors.splitlines()[-1] == "fedwsa-run: interrupted"
        assert all_end(processes)


def raylet(pid: int) -> bool:
    """Whether a process has started Ray's first programs."""
    return len(family(pid)) > 1
