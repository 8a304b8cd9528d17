"""The run folder: what it says of a run before it starts, and reading it afterwards."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from fedwsa.components import ConfigError
from fedwsa.config import CONFIG_DIR, Config, parse
from fedwsa.data import skew
from fedwsa.data.partition import Partition

if TYPE_CHECKING:
    import pandas as pd

# pandas and matplotlib are imported when a run has ended: they would hold up its first round.

_PACKAGES = [
    "fedwsa",
    "flwr",
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "hydra-core",
    "safetensors",
]


def describe_run(config: Config, partition: Partition, folder: Path, sizes: Sequence[str]) -> None:
    """Write what is needed to repeat a run: configuration, environment, partition, skew, sizes.

    Parameters
    ----------
    sizes
        The size of each client.

    Raises
    ------
    ConfigError
        If the folder holds a run already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = OmegaConf.to_yaml(OmegaConf.create(config.model_dump(by_alias=True)))
    try:
        with (folder / "config.yaml").open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"hydra.run.dir: {folder} holds a run already; name another folder"
        ) from None
    _write_json(folder / "environment.json", environment())
    _write_json(folder / "partition.json", partition.as_dict(), indent=None)
    if (draws := skew.drawn(config.skew, config.seed, config.clients.count))[0]:
        _write_rows(folder / "skew.csv", [{"client": k, **own} for k, own in enumerate(draws)])
    if config.clients.sizes is not None:
        models = {s: config.model_of(s).model_dump(by_alias=True) for s in config.size_names}
        _write_json(folder / "sizes.json", {"models": models, "clients": list(sizes)}, indent=None)


def read_config(folder: Path) -> Config:
    """The configuration of a run, from its folder.

    Raises
    ------
    ConfigError
        If there is none, or it is of another version.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"resume: there is no run in {folder}: no config.yaml")
    try:
        composed = OmegaConf.load(file)
    except (OSError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"resume: {file} is damaged{where}") from None
    if not isinstance(composed, DictConfig):
        raise ConfigError(f"resume: {file} is damaged: it holds no configuration")
    return parse(composed)


def environment() -> dict[str, Any]:
    """Commit, versions and machine."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }


def _git(*arguments: str) -> str | None:
    """What git says of the source tree; None where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=CONFIG_DIR, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _write_json(file: Path, values: Any, indent: int | None = 2) -> None:
    file.write_text(json.dumps(values, indent=indent) + "\n", encoding="utf-8")


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_result(folder: Path) -> dict[str, Any]:
    """``result.json`` of a run folder."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def read_history(folder: Path) -> pd.DataFrame:
    """``history.csv`` of a run folder."""
    import pandas as pd

    return pd.read_csv(folder / "history.csv")


def draw_pictures(folder: Path, label: str) -> None:
    """``partition.png``, and ``curves.png`` if at least a round went by."""
    from experiments.plots import plot_curves, plot_partition

    partition = json.loads((folder / "partition.json").read_text(encoding="utf-8"))
    plot_partition(partition, folder / "partition.png")
    if (folder / "history.csv").exists() and len(history := read_history(folder)):
        plot_curves([(label, history)], folder / "curves.png")
