"""A command that runs in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

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
