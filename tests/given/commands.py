"""Commands, in this process and in another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.given.runtimes import ran

COMMAND = Path(sys.executable).with_name("fedwsa")

Called = Callable[..., tuple[int, str, str]]


def called(
    name: str,
    main: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Called:
    """What takes words and gives the exit code, what was printed, and what was said to be wrong."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *words])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


def fedwsa(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder, with a cache there."""
    inherited = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    variables = {**inherited, "FEDWSA_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    return ran([COMMAND, *arguments], folder, {**variables, **environment})
