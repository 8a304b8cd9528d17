"""Ctrl-C and SIGTERM end a command from its first import on, and are nobody else's business."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedwsa.simulation import run_simulation

BIN = Path(sys.executable).parent

# The signal comes while a module is looked for. Where Python swallows what a handler raises, as in
# a destructor, nothing but the note that the handler leaves can end the command.
SITE = """
import os, signal, sys

class Dying:
    def __del__(self):
        os.kill(os.getpid(), NUMBER)
        for _ in range(1000):  # the handler is called between two instructions
            pass

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "MODULE" and Finder.left:
            Finder.left -= 1
            for _ in range(TIMES):
                if SWALLOWED:
                    Dying()
                else:
                    os.kill(os.getpid(), NUMBER)
    left = 1

sys.meta_path.insert(0, Finder())
"""


def interrupted(
    folder: Path,
    command: list[str],
    module: str,
    number: int,
    swallowed: bool = False,
    times: int = 1,
) -> subprocess.CompletedProcess[str]:
    """A command to whose process the signal comes when it is about to import a module."""
    text = SITE.replace("MODULE", module).replace("NUMBER", str(int(number)))
    text = text.replace("SWALLOWED", str(swallowed)).replace("TIMES", str(times))
    (folder / "sitecustomize.py").write_text(text)
    inherited = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    path = os.pathsep.join([str(folder), os.getcwd()])
    return subprocess.run(
        command,
        cwd=folder,
        env={**inherited, "PYTHONPATH": path, "FEDWSA_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "module"),
    [
        ("fedwsa rounds=1 clients.count=2", "experiments.commands.start"),
        ("fedwsa rounds=1 clients.count=2", "server.rounds"),  # after the start
        ("fedwsa-table .", "rich"),
    ],
)
def test_a_signal_that_python_swallows_during_imports_ends_a_command_all_the_same(
    words: str, module: str, tmp_path: Path
) -> None:
    name, *rest = words.split()
    number = signal.SIGTERM if module.startswith("experiments") else signal.SIGINT
    done = interrupted(tmp_path, [str(BIN / name), *rest], module, number, True)
    assert done.returncode == 128 + number, done.stderr
    # Before it Python itself says that it ignores an exception.
    assert done.stderr.splitlines()[-1].startswith(f"{name}: interrupted")
    assert not list(tmp_path.glob("runs/*"))


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    words = [str(BIN / "fedwsa"), "rounds=1", "clients.count=2"]
    done = interrupted(tmp_path, words, "server.rounds", signal.SIGINT, True, 2)
    assert done.returncode == 130
    assert "fedwsa: " not in done.stderr  # nothing is left that could say it


IMPORTING = """
import os, signal, threading, time
from fedwsa import interruption

interruption.watch("here")
LOCKED = threading.Lock()
# As in the callback of an import's lock: taken, and not yet in the try that lets it go.
def inside():
    LOCKED.acquire()
    os.kill(os.getpid(), NUMBER)
    for _ in range(1000):
        pass
    LOCKED.release()

inside.__code__ = inside.__code__.replace(co_filename="<frozen importlib._bootstrap>")
inside()
assert not LOCKED.locked()
began = time.monotonic()
try:
    while time.monotonic() < began + 60:
        time.sleep(1)
except KeyboardInterrupt:
    raise SystemExit(interruption.code())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_lock_of_the_import_machinery_held(number: int) -> None:
    program = IMPORTING.replace("NUMBER", str(int(number)))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stderr) == (128 + number, "")


MODULE = """
import os
os.kill(os.getpid(), NUMBER)
for _ in range(1000):
    pass
os.write(1, b"imported")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_module_is_imported_to_its_end(number: int, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(MODULE.replace("NUMBER", str(int(number))))
    program = f"""
import sys, time
from fedwsa import interruption

interruption.watch("here")
sys.path.append({str(tmp_path)!r})
try:
    import module
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(interruption.code())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "imported", "")


def test_what_is_ignored_in_the_background_of_a_shell_stays_ignored(tmp_path: Path) -> None:
    command = ["sh", "-c", f"trap '' INT; exec {BIN}/fedwsa-table ."]
    done = interrupted(tmp_path, command, "rich", signal.SIGINT)
    assert done.returncode == 1
    assert "interrupted" not in done.stderr


def test_a_simulation_leaves_the_handlers_of_its_caller(no_ray: None) -> None:
    def mine(*_: object) -> None: ...

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, mine) for number in numbers]
    try:
        server = ServerApp()
        server.main()(lambda grid, context: None)
        run_simulation(server, ClientApp(), 1, workers=1)
        assert not ray.is_initialized()
        assert [signal.getsignal(number) for number in numbers] == [mine, mine]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


STARTING = """
import os, signal, subprocess, sys
from fedwsa import interruption

interruption.watch("here")
# Where Python prints what is raised, and forgets it.
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    subprocess.Popen([sys.executable, "-c", ""], preexec_fn=lambda: None).wait()
    for _ in range(10**9):
        pass
except KeyboardInterrupt:
    print("ended")
"""


def test_a_process_is_started_to_its_end() -> None:
    command = [sys.executable, "-c", STARTING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("ended\n", "")
