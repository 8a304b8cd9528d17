"""Runs in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fedwsa.schema.config import Config
from server.callbacks.tracker import Tracker, require


class WeightsAndBiases(Tracker):
    """A run of a W&B project; by default offline, in ``wandb/`` of the run folder.

    Parameters
    ----------
    mode
        ``offline`` needs no account and no network; ``wandb sync`` sends the files later.
    project
        Its name.
    """

    def __init__(self, mode: Literal["offline", "online"], project: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb = require("wandb", "wandb")
        self._mode, self._project = mode, project
        self._failed = True

    def on_start(self, config: Config, folder: Path) -> None:
        """Begin a run."""
        # Without what W&B collects by itself: the terminal, the machine, the source tree.
        quiet = self._wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        self._run = self._wandb.init(
            project=self._project,
            mode=self._mode,
            dir=str(folder),
            name=f"{config.label} seed {config.seed}",
            config=config.model_dump(by_alias=True),
            settings=quiet,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """All figures of the round at its step."""
        self._run.log(dict(values), step=step)

    def on_result(self, result: Mapping[str, Any]) -> None:
        """The result in the run's summary, as ``result/NAME``."""
        self._run.summary.update({f"result/{key}": value for key, value in result.items()})
        self._failed = False

    def on_end(self) -> None:
        """End the run, and W&B's process."""
        self._run.finish(exit_code=int(self._failed))
        self._wandb.teardown()
