"""The run folder, read."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from omegaconf import DictConfig, OmegaConf

from fedwsa.config.component import ConfigError
from fedwsa.data.partition_files import read_described
from fedwsa.runfolder.files import whole_lines
from fedwsa.runfolder.read import Unusable
from fedwsa.schema.compose import parse
from fedwsa.schema.config import Config

if TYPE_CHECKING:
    import pandas as pd

# pandas and matplotlib are imported when a run has ended: they would hold up its first round.


logger = logging.getLogger("fedwsa")

_DRAWN_APART = 200  # clients, each with a bar of its own


def composed_config(folder: Path) -> Config:
    """The configuration of a run, from its folder.

    Raises
    ------
    ConfigError
        If it is damaged, or of another version.
    """
    file = folder / "config.yaml"
    try:
        composed = OmegaConf.load(file)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"resume: {file} is damaged{where}") from None
    if not isinstance(composed, DictConfig) or not composed:
        raise ConfigError(f"resume: {file} is damaged: it holds no configuration")
    try:
        return parse(composed)
    except ConfigError as error:
        raise ConfigError(f"resume: {file}: {error}") from None


def read_history(folder: Path) -> pd.DataFrame:
    """``history.csv`` of a run folder."""
    import pandas as pd

    return pd.read_csv(io.StringIO(whole_lines(folder / "history.csv")))


def draw_pictures(folder: Path, label: str) -> None:
    """``partition.png``, and ``curves.png`` if at least a round went by."""
    from experiments.reports.partition_pictures import plot_labels
    from experiments.reports.pictures import plot_curves, plot_partition

    try:
        partition = read_described(folder / "partition.json")
        draw = plot_partition if partition["clients"] <= _DRAWN_APART else plot_labels
        draw(partition, folder / "partition.png")
    except Unusable as error:  # somebody has damaged it since the run began
        logger.warning("%s: its partition is not drawn: %s", folder, error)
    if (folder / "history.csv").exists() and len(history := read_history(folder)):
        plot_curves([(label, history)], folder / "curves.png")
