"""The environment of a command that is started by a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def ran(
    command: Sequence[str | Path], folder: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """A command that was run in a folder to its end, with what it printed."""
    return subprocess.run(
        command,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def environment(folder: Path) -> dict[str, str]:
    """As a person has it: importing the command here has set what shows tracebacks."""
    inherited = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    return {**inherited, "FEDWSA_CACHE": str(folder / "cache"), "PYTHONPATH": os.getcwd()}
