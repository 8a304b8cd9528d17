"""The run folder: what it says of a run before the first round, its log, and its lock."""

from __future__ import annotations

import csv
import io
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedwsa.config.component import ConfigError
from fedwsa.data import skew
from fedwsa.data.partition import Partition
from fedwsa.data.partition_files import MOST_AS_TEXT, write_partition
from fedwsa.launcher import APPS
from fedwsa.runfolder.files import write_text
from fedwsa.runfolder.locks import locked
from fedwsa.runfolder.write import write_json
from fedwsa.schema.config import Config

logger = logging.getLogger("fedwsa")

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


def describe_run(
    config: Config, partition: Partition, folder: Path, sizes: Mapping[str, Any]
) -> None:
    """Write what is needed to repeat a run: configuration, environment, partition, skew, sizes.

    Parameters
    ----------
    sizes
        What is known of the clients' sizes, :attr:`server.federation.Federation.known_sizes`.

    Raises
    ------
    ConfigError
        If the folder holds a run already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _require_free(folder)
    with locked(folder / "run.log", f"{folder}: another process begins a run in it"):
        _require_free(folder)  # still: another one may have been faster
        write_json(folder / "environment.json", environment())
        write_partition(folder / "partition.json", partition)
        clients = config.clients.count
        if clients <= MOST_AS_TEXT and skew.drawn(config.skew, config.seed, 1)[0]:
            draws = skew.drawn(config.skew, config.seed, clients)
            _write_rows(folder / "skew.csv", [{"client": k, **own} for k, own in enumerate(draws)])
        if config.clients.sizes is not None:
            write_json(folder / "sizes.json", sizes, indent=None)
        # The last one: where it is, there is a run.
        text = OmegaConf.to_yaml(OmegaConf.create(config.model_dump(by_alias=True)))
        write_text(folder / "config.yaml", text)


def _require_free(folder: Path) -> None:
    if (folder / "config.yaml").exists():
        raise ConfigError(f"hydra.run.dir: {folder} holds a run already; name another folder")


def environment() -> dict[str, Any]:
    """Commit, versions and machine."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    """None of fedwsa, where only a bundle of it is there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says of the source tree; None where there is no git or no checkout."""
    if not (APPS / "pyproject.toml").exists():  # installed, maybe into somebody's checkout
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=APPS, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


def require_begun(folder: Path) -> None:
    """Refuse to go on with what is no run, or has ended.

    Raises
    ------
    ConfigError
        Says which.
    """
    if not (folder / "config.yaml").exists():
        raise ConfigError(f"resume: there is no run in {folder}: no config.yaml")
    if (folder / "result.json").exists():
        raise ConfigError(f"resume: the run in {folder} is finished")
    if not (folder / "partition.json").exists():
        raise ConfigError(f"resume: {folder} is damaged: no partition.json; run it again")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a run folder to this process, and in it what the run says and why it ended early.

    Raises
    ------
    ConfigError
        If another process has it.
    """
    in_use = f"{folder}: another process is still running it"
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    with locked(folder / "config.yaml", in_use):
        logger.addHandler(handler)
        try:
            yield
        except Exception as error:  # the terminal gets it from the command
            handler.handle(logging.makeLogRecord({"levelname": "ERROR", "msg": str(error)}))
            raise
        finally:
            logger.removeHandler(handler)
            handler.close()
