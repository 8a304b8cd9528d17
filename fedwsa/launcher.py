"""Where the apps lie, and the console scripts, which put them on Python's path.

``server``, ``clients``, ``experiments`` and ``conf`` stand beside this package in a checkout and in
a Flower app bundle. In a wheel they travel inside of it, so that an installation takes no other
name than ``fedwsa``.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from fedwsa import interruption

_PACKAGE = Path(__file__).resolve().parent
_INSIDE = _PACKAGE / "_apps"

APPS = _INSIDE if _INSIDE.is_dir() else _PACKAGE.parent
"""The folder that holds ``server``, ``clients``, ``experiments`` and ``conf``."""


def find_apps() -> None:
    """Let this process, and those that it starts, import the apps, before others of their names."""
    here = str(APPS)
    if sys.path[:1] != [here]:  # of ``python -m`` the working folder is
        sys.path[:] = [here, *(path for path in sys.path if path != here)]
    # Ray's workers and the processes of a study have paths of their own.
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != here]
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *inherited])


def _start(name: str, module: str, *, ours: bool = True) -> None:
    """Run the command whose ``main`` stands in a module.

    Parameters
    ----------
    ours
        Whether it needs our apps; somebody else's may have modules of their names.
    """
    if sys.platform == "win32":
        sys.exit(f"{name}: runs on Linux and macOS; on Windows, in its Subsystem for Linux")
    interruption.watch(name)
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version  # imported for this alone

        print(f"fedwsa {version('fedwsa')}")
        return
    if ours:
        find_apps()
    with interruption.starting():
        command = import_module(module)
    interruption.check()
    try:
        command.main()
        interruption.check()
    finally:
        if not interruption.asked():
            interruption.end_at_once()


def simulate() -> None:
    """Start ``fedwsa``."""
    _start("fedwsa", "experiments.commands.start")


def learngene() -> None:
    """Start ``fedwsa-learngene``."""
    _start("fedwsa-learngene", "experiments.commands.learngene")


def merge() -> None:
    """Start ``fedwsa-merge``."""
    _start("fedwsa-merge", "experiments.commands.merge")


def partition() -> None:
    """Start ``fedwsa-partition``."""
    _start("fedwsa-partition", "experiments.commands.partition")


def plot() -> None:
    """Start ``fedwsa-plot``."""
    _start("fedwsa-plot", "experiments.commands.plot")


def study() -> None:
    """Start ``fedwsa-study``."""
    _start("fedwsa-study", "experiments.commands.study")


def run() -> None:
    """Start ``fedwsa-run``."""
    _start("fedwsa-run", "fedwsa.apps.command", ours=False)


def table() -> None:
    """Start ``fedwsa-table``."""
    _start("fedwsa-table", "experiments.commands.table")
