"""Runs in MLflow."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedwsa.config.component import flat
from fedwsa.schema.config import Config
from server.callbacks.tracker import Tracker, require

_MOST = 100  # parameters, or metrics, that MLflow takes at once


class MLflow(Tracker):
    """A run of an MLflow experiment; by default in a database file, without a server.

    Parameters
    ----------
    uri
        Tracking URI: ``sqlite:///FILE``, or that of a server.
    experiment
        Name of the experiment, made if there is none.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._mlflow = require("mlflow", "mlflow")
        self._uri, self._experiment = uri, experiment
        self._status = "FAILED"

    def on_start(self, config: Config, folder: Path) -> None:
        """Begin a run with the configuration as its parameters."""
        for name in ("mlflow", "alembic"):  # which tell of every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        if self._uri.startswith("sqlite:///"):
            Path(self._uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._client = self._mlflow.MlflowClient(self._uri)
        found = self._client.get_experiment_by_name(self._experiment)
        number = found.experiment_id if found else self._client.create_experiment(self._experiment)
        tags = {"folder": str(folder.resolve()), "algorithm": config.label}
        name = f"{config.label} seed {config.seed}"
        self._run = self._client.create_run(number, run_name=name, tags=tags).info.run_id
        param = self._mlflow.entities.Param
        values = [param(k, str(v)) for k, v in flat(config.model_dump(by_alias=True))]
        self._send("params", values)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """A metric for each figure."""
        now, metric = int(time.time() * 1000), self._mlflow.entities.Metric
        self._send("metrics", [metric(k, float(v), now, step) for k, v in values.items()])

    def on_result(self, result: Mapping[str, Any]) -> None:
        """The numbers of the result as metrics ``result/NAME``."""
        plain = {k: v for k, v in flat(result) if isinstance(v, int | float)}
        self.log({f"result/{k}": v for k, v in plain.items()}, int(result["rounds"]))
        self._status = "FINISHED"

    def on_end(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run, self._status)

    def _send(self, what: str, values: list[Any]) -> None:
        for start in range(0, len(values), _MOST):
            self._client.log_batch(self._run, **{what: values[start : start + _MOST]})
