"""A run folder as it is read: by tables and figures, by who goes on with a run.

Without torch, Flower or pandas, which take longer to import than a table to make.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fedwsa.runfolder.files import whole_lines


class Unusable(ValueError):
    """A folder that is no finished run of this version; the message says why."""


def read_config(folder: Path) -> dict[str, Any]:
    """``config.yaml`` of a run folder.

    Raises
    ------
    Unusable
        If there is none, or only a part.
    """
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        config = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text).get_single_data()
    except FileNotFoundError:
        raise Unusable("it has no config.yaml") from None
    except (OSError, ValueError, yaml.YAMLError):
        raise Unusable("its config.yaml cannot be read") from None
    if not isinstance(config, dict) or "seed" not in config:
        raise Unusable("its config.yaml is not that of a run")
    return config


def read_columns(file: Path) -> dict[str, list[str]]:
    """A CSV of a run folder by column, as text; no column if there is no such file.

    Raises
    ------
    Unusable
        If it cannot be read, or a row has not as many cells as there are columns.
    """
    try:
        head, *rows = list(csv.reader(io.StringIO(whole_lines(file), newline=""))) or [[]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error):
        raise Unusable(f"its {file.name} cannot be read") from None
    for i, row in enumerate(rows):
        if len(row) != len(head):
            raise Unusable(f"its {file.name} is damaged in line {i + 2}")
    return {key: [row[i] for row in rows] for i, key in enumerate(head)}


def numbers(file: Path, column: Sequence[str]) -> list[float | None]:
    """Cells as numbers; None for empty ones.

    Raises
    ------
    Unusable
        If one is none; names the file.
    """
    try:
        return [float(text) if text else None for text in column]
    except ValueError as error:
        raise Unusable(f"its {file.name} is damaged: {error}") from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises
    ------
    Unusable
        If it cannot be read as one.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unusable(f"it has no {file.name}") from None
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise Unusable(f"its {file.name} cannot be read")
    return values


def read_result(folder: Path) -> dict[str, Any]:
    """``result.json`` of a run that is finished.

    Raises
    ------
    Unusable
        If it is not, or another version made it.
    """
    if not (folder / "result.json").exists():
        hint = f"; fedwsa resume={shlex.quote(str(folder))} goes on"
        saved = any((folder / "checkpoints").glob("round-*"))
        raise Unusable("the run is not finished" + hint * saved)
    result = read_json(folder / "result.json")
    if missing := [key for key in ("accuracy", "seed", "rounds", "algorithm") if key not in result]:
        raise Unusable(f"its result.json has no {missing[0]}: another version of fedwsa made it")
    return result
