"""Hydra's callback around the runs of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Comparison(Callback):
    """Collects the runs of a multirun; shows and saves them side by side at its end."""

    def __init__(self) -> None:
        self._runs: list[tuple[list[str], Path]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Remember a run that completed."""
        if job_return.status is JobStatus.COMPLETED and job_return.hydra_cfg is not None:
            hydra = job_return.hydra_cfg.hydra
            self._runs.append((list(hydra.overrides.task), Path(hydra.runtime.output_dir)))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; write ``comparison.csv`` and ``comparison.png``."""
        if self._runs:
            # Here, since they import pandas: not before a run has begun.
            from experiments.reports.comparison import SweptRun, compare

            compare([SweptRun(*run) for run in self._runs], self._runs[0][1].parent)
