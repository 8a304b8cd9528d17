"""Where configuration lies, and the options that stand there."""

from __future__ import annotations

from pathlib import Path

from fedwsa.config.component import Component
from fedwsa.launcher import APPS

# OmegaConf is imported where options are read: workers of a simulation are spared it.

CONFIG_DIR = APPS / "conf"


def own_options() -> Path | None:
    """The folder ``conf`` of the working directory, whose options stand beside ours."""
    folder = Path("conf").resolve()
    return folder if folder.is_dir() and folder != CONFIG_DIR else None


def options(group: str) -> dict[str, Component]:
    """The options of a group of ``conf/`` that are components, by name."""
    from omegaconf import OmegaConf

    files = sorted((CONFIG_DIR / group).glob("*.yaml"))
    return {f.stem: Component.model_validate(OmegaConf.load(f)) for f in files}
