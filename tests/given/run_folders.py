"""Run folders as a run leaves them, without running: for tests of what is made of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from experiments.reports.tables.runs import cell_values


def run_folder(
    folder: Path,
    accuracies: Sequence[float | None] = (0.5,),
    *,
    axes: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    columns: Mapping[str, Sequence[object]] | None = None,
    cohort: str = "0 1",
    partition: str = "ab",
    made_by: str | None = None,
) -> Path:
    """Write a run folder with so many rounds.

    Parameters
    ----------
    axes
        Of ``cell.json``, without the seed; None: there is no such file.
    config
        Beside the seed.
    columns
        More of ``history.csv``.
    """
    folder.mkdir(parents=True)
    values = {"rounds": len(accuracies), "seed": seed, **(config or {})}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    if axes is not None:
        cell = cell_values({**axes, "seed": str(seed)}, [], {**values, "axes": dict(axes)})
        write(folder / "cell.json", cell)
    packages = {"fedwsa": made_by or version("fedwsa")}
    write(folder / "environment.json", {"packages": packages})
    shares = {"name": "iid", "arguments": {}, "hash": partition, "samples": 6}
    severity = dict.fromkeys(("jensen_shannon", "earth_movers", "gini"), 0.0)
    write(
        folder / "partition.json",
        {**shares, "severity": severity, "label_counts": [[1, 2], [3, 0]]},
    )
    last = accuracies[-1]
    result = {"algorithm": "FedAvg", "seed": seed, "accuracy": last, "loss": 1.0, "seconds": 2.0}
    write(folder / "result.json", {**result, "rounds": len(accuracies)})
    more = dict(columns or {})
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["round", "accuracy", *more, "cohort"])
        for i, accuracy in enumerate(accuracies):
            writer.writerow([i + 1, accuracy, *(more[key][i] for key in more), cohort])
    return folder


def write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values))


def pair_of_groups(folder: Path, off: Sequence[float], on: Sequence[float], **axes: str) -> None:
    """Runs with and without WSA, a seed for each accuracy."""
    for label, values in (("off", off), ("on", on)):
        for seed, value in enumerate(values):
            own = {**axes, "wsa": label}
            name = ",".join([*own.values(), str(seed)])
            run_folder(folder / name, [value], axes=own, seed=seed)


def weights(folder: Path, file: str = "model.safetensors") -> dict[str, Tensor]:
    """The arrays of a run's model."""
    return load_file(folder / file)
