"""Files of a run folder, each written whole or not at all: that one is there says something."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedwsa.runfolder.files import write_text

CELL, FAILED, STUDY = "cell.json", "failed.json", "study.json"


def write_json(file: Path, values: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write a JSON object; ``indent`` None: on one line."""
    write_text(file, json.dumps(values, indent=indent) + "\n")


def write_failure(folder: Path, reason: str) -> None:
    """Say in a run folder why the run failed."""
    write_json(folder / FAILED, {"reason": reason})
