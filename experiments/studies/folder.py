"""The folder of a study: what is finished, what is begun again, what failed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from experiments.reports.tables.runs import cell_values, fingerprint
from experiments.studies.schema import Cell
from fedwsa.config.component import ConfigError
from fedwsa.config.identity import described, differences
from fedwsa.runfolder.locks import locked
from fedwsa.runfolder.read import Unusable, read_config, read_json, read_result
from fedwsa.runfolder.write import CELL, FAILED, write_json

State = Literal["finished", "failed", "interrupted", "new"]


def state_of(folder: Path) -> State:
    """What has become of a cell so far."""
    if not folder.exists():
        return "new"
    try:
        read_result(folder)
    except Unusable:
        return "failed" if (folder / FAILED).exists() else "interrupted"
    return "finished"


def differing(folder: Path, config: Mapping[str, Any]) -> str | None:
    """In which keys a finished run is another than the one that is wanted; None: in none."""
    try:
        if read_json(folder / CELL).get("hash") == fingerprint(config):
            return None
    except Unusable:
        pass
    try:
        there = described(read_config(folder))
    except Unusable as error:
        return str(error)
    return differences(there, described(config))


def refuse_other_runs(
    folder: Path, cells: Sequence[Cell], configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to go on beside finished cells that were made with another configuration.

    Raises
    ------
    ConfigError
        Naming the first such cell and its differing keys.
    """
    found = []
    for cell in cells:
        if state_of(folder / cell.name) == "finished":
            difference = differing(folder / cell.name, configs[cell.name])
            if difference is not None:
                found.append((cell.name, difference))
    if found:
        others = f" (and {len(found) - 1} other cells)" if len(found) > 1 else ""
        raise ConfigError(
            f"{folder / found[0][0]}{others}: finished with another configuration: {found[0][1]}; "
            "name another --folder, or move these away"
        )


def prepare(folder: Path, cell: Cell, config: Mapping[str, Any]) -> None:
    """Make the folder of a cell that is about to run; what an interrupted one left is removed."""
    path = folder / cell.name
    if path.exists():
        assert state_of(path) != "finished"
        refuse_strange_files(path)
        aside = folder / f".removed-{os.getpid()}"  # in one step: a half-removed cell is none
        path.rename(aside)
        shutil.rmtree(aside)
    path.mkdir(parents=True)
    write_json(path / CELL, cell_values(cell.axes, cell.overrides, config))


def refuse_strange_files(path: Path) -> None:
    """Keep what no study has made: an unfinished cell is removed before it begins again.

    Raises
    ------
    ConfigError
        If there are such files.
    """
    if path.exists() and not (path / CELL).exists() and any(path.iterdir()):
        raise ConfigError(f"{path}: is not empty, and no study made it; move it away")


@contextmanager
def kept_apart(folder: Path) -> Iterator[None]:
    """Keep the folder to this process; if it is new and a ConfigError comes, leave none behind.

    Raises
    ------
    ConfigError
        If another study runs in it, or it cannot be written.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / ".lock"
        file.touch()
    except OSError as error:
        raise ConfigError(f"--folder: cannot write {folder}: {error.strerror}") from None
    with locked(file, f"{folder}: another fedwsa-study is running in it"):
        try:
            yield
        except ConfigError:
            if folder in new and {p.name for p in folder.iterdir()} <= {".lock", "logs"}:
                shutil.rmtree(folder)
                with suppress(OSError):
                    for parent in new[1:]:
                        parent.rmdir()
            raise
