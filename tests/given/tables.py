"""What ``fedwsa-table`` prints."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from experiments.commands.table import table


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints."""
    table(arguments, Console(width=200))
    return capsys.readouterr().out


def as_csv(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(shown(capsys, *arguments, "--format", "csv"))))
