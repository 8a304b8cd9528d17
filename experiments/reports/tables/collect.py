"""Finding run folders, and what sets the runs in them apart."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.reports.tables.kept import read_kept
from experiments.reports.tables.runs import Run, fingerprint
from fedwsa.config.component import ConfigError
from fedwsa.config.identity import described
from fedwsa.runfolder.read import Unusable, read_config, read_json, read_result
from fedwsa.runfolder.write import CELL, FAILED, STUDY

SEED = "seed"
_RUN_FILES = (CELL, "config.yaml", "result.json")


@dataclass
class Collection:
    """Runs that were found.

    Attributes
    ----------
    runs : list of Run
        Finished and failed ones.
    skipped : list of (Path, str)
        Folders that are none, and why.
    study : dict
        What the study says that they are of: ``baseline``, ``main``, ``metric``, ``target``; empty
        for runs of no study or of several.
    missing : int
        Cells of studies that have not begun.
    cells : dict of Path to dict
        The axes of cells of studies.
    """

    runs: list[Run] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    study: dict[str, Any] = field(default_factory=dict)
    missing: int = 0
    cells: dict[Path, dict[str, str]] = field(default_factory=dict)


def collect(paths: Sequence[str]) -> Collection:
    """Read the runs at run folders, folders of such, study folders, and patterns of these.

    Or of files of kept runs (:mod:`experiments.reports.tables.kept`).

    Raises
    ------
    ConfigError
        If there is nothing at a path.
    """
    collection = Collection()
    folders: dict[Path, None] = {}
    studies: list[dict[str, Any]] = []
    kept: dict[tuple[str, int], Run] = {}
    for path in paths:
        if path.endswith(".csv") and os.path.isfile(path):
            study, runs = read_kept(Path(path))
            studies.append(study)
            kept.update({(run.same, run.seed): run for run in runs})  # a repetition counts once
            continue
        found = list(_folders(path, collection, studies))
        if not found and not collection.skipped and not collection.missing:
            raise ConfigError(f"{path}: there is no run folder")
        folders.update(dict.fromkeys(found))
    read = []
    for folder in folders:
        try:
            read.append(_read(folder, collection.cells.get(folder)))
        except Unusable as error:
            collection.skipped.append((folder, str(error)))
    if len(studies) == 1:
        collection.study = studies[0]
    if kept and read:
        raise ConfigError("kept runs and run folders are no one table; name either")
    collection.runs = list(kept.values()) or _single(_with_axes(read, collection), collection)
    return collection


def _folders(path: str, collection: Collection, studies: list[dict[str, Any]]) -> Iterator[Path]:
    """The run folders at a path."""
    if not os.path.exists(path):
        matching = sorted(glob.glob(path))
        if not matching:
            what = "file" if path.endswith(".csv") else "folder"
            raise ConfigError(f"{path}: there is no such {what}")
        for match in matching:
            if os.path.isdir(match):
                yield from _folders(match, collection, studies)
        return
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"{path}: is no folder")
    if (folder / STUDY).exists():
        yield from _of_study(folder, collection, studies)
    elif any((folder / name).exists() for name in _RUN_FILES):
        yield folder
    else:
        for entry in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
            yield from _folders(str(entry), collection, studies)


def _of_study(
    folder: Path, collection: Collection, studies: list[dict[str, Any]]
) -> Iterator[Path]:
    """The cells of a study that have begun."""
    try:
        values = read_json(folder / STUDY)
        cells = {folder / cell["folder"]: dict(cell["axes"]) for cell in values["cells"]}
        studies.append(dict(values["study"]))
    except (Unusable, KeyError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, Unusable) else f"its {STUDY} is of another version"
        collection.skipped.append((folder, why))
        return
    collection.cells |= cells
    for cell in cells:
        if cell.exists():
            yield cell
        else:
            collection.missing += 1


@dataclass
class _Read:
    """A folder as read, before it is known what sets it apart."""

    run: Run
    known: bool


def _read(folder: Path, axes: Mapping[str, str] | None) -> _Read:
    """Read a run folder, with its axes if a study has told them."""
    cell = read_json(folder / CELL) if (folder / CELL).exists() else {}
    failed = read_json(folder / FAILED).get("reason", "?") if (folder / FAILED).exists() else None
    result: dict[str, Any] = {}
    if failed is None:
        result = read_result(folder)
        _check_version(folder)
    known = axes is not None or "axes" in cell
    own = dict(cell.get("axes", {}) if axes is None else axes)
    if failed is not None and not known:
        raise Unusable(f"it failed: {failed}")
    seed = int(own.pop(SEED, result.get("seed", 0)))
    same = cell.get("hash_but_seed")
    if same is None:
        same = fingerprint(read_config(folder), SEED)
    run = Run(folder, seed, own, same, result, failed)
    run.require_history()
    return _Read(run, known)


def _check_version(folder: Path) -> None:
    """Refuse runs of another version, whose numbers may mean something else."""
    packages = read_json(folder / "environment.json").get("packages", {})
    there, here = str(packages.get("fedwsa", "?")), version("fedwsa")
    if there.split(".")[:2] != here.split(".")[:2]:
        raise Unusable(f"fedwsa {there} made it, this is {here}")


def _with_axes(read: Sequence[_Read], collection: Collection) -> list[Run]:
    """The runs with what sets them apart: what their cells say, or their configurations."""
    runs = [r.run for r in read]
    groups: dict[tuple[str, ...], set[str]] = {}
    for run in runs:
        groups.setdefault(tuple(run.axes.values()), set()).add(run.same)
    if (
        all(r.known for r in read)
        and len({tuple(run.axes) for run in runs}) <= 1
        and all(len(same) == 1 for same in groups.values())
    ):
        return runs
    collection.study = {}  # it speaks of other axes
    usable, configs = [], []
    for r in read:
        try:
            configs.append(described(read_config(r.run.folder)))
            usable.append(r.run)
        except Unusable as error:
            why = f"it failed: {r.run.failed}" if r.run.failed else str(error)
            collection.skipped.append((r.run.folder, why))
    for run, axes in zip(usable, differences(configs), strict=True):
        run.axes = axes
    return usable


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What sets flat configurations apart, in a few words.

    A part that is exchanged is named by its group alone (``strategy``: ``FedProx``), and of keys
    of one group that say the same, one is kept.
    """
    keys = list(dict.fromkeys(key for config in configs for key in config if key != SEED))
    columns = {key: [_label(key, config.get(key)) for config in configs] for key in keys}
    varying = [key for key in keys if len(set(columns[key])) > 1]
    varying.sort(key=lambda key: not key.endswith(("._target_", ".enabled")))
    kept: dict[str, list[str]] = {}
    for key in varying:
        group = key.partition(".")[0]
        own = [column for name, column in kept.items() if name.partition(".")[0] == group]
        seen = list(zip(*own, strict=True)) if own else [()] * len(configs)
        if len(set(zip(seen, columns[key], strict=True))) > len(set(seen)):
            name = group if key.endswith(("._target_", ".enabled")) else key
            kept[name] = columns[key]
    ordered = sorted(
        kept, key=lambda name: next(i for i, k in enumerate(keys) if k.startswith(name))
    )
    return [{name: kept[name][i] for name in ordered} for i in range(len(configs))]


def _label(key: str, value: Any) -> str:
    if value is None or value == {}:
        return "off" if key.endswith(".enabled") else "-"
    if key.endswith("._target_"):
        return str(value).rpartition(".")[2]
    if key.endswith(".enabled"):
        return "on" if value else "off"
    return value if isinstance(value, str) else json.dumps(value)


def _single(runs: Iterable[Run], collection: Collection) -> list[Run]:
    """The runs without those that repeat another to the seed."""
    kept: dict[tuple[object, ...], Run] = {}
    for run in runs:
        key = (*run.axes.items(), run.seed)
        if key in kept:
            collection.skipped.append((run.folder, f"it repeats {kept[key].folder}"))
        else:
            kept[key] = run
    return list(kept.values())
