"""The environment of a command that is started by a test."""

from __future__ import annotations

import os
from pathlib import Path


def environment(folder: Path) -> dict[str, str]:
    """As a person has it: importing the command here has set what shows tracebacks."""
    inherited = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    return {**inherited, "FEDWSA_CACHE": str(folder / "cache"), "PYTHONPATH": os.getcwd()}
