"""The command ``python -m experiments.connectivity``: train pairs, measure lines, summarise."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import pandas as pd
from rich.console import Console

from experiments.commands.help import connectivity_help
from experiments.commands.preamble import composing
from experiments.connectivity.lines import Scorer, measure
from experiments.connectivity.pairs import Pair, Trainer
from experiments.connectivity.schema import ConnectivityConfig, compose
from experiments.connectivity.summary import COLUMNS, POINTS, summarise
from fedwsa.command_line import fail
from fedwsa.config.component import ConfigError
from fedwsa.data.examples import LabelledData
from fedwsa.data.federated import subset
from fedwsa.data.loading import load, open_source
from fedwsa.fleet.devices import resolve_device
from fedwsa.learngene.progress import watching
from fedwsa.models.architecture import Units, units_of
from fedwsa.runfolder.files import replacing, write_text

_COMMAND = "experiments.connectivity"
console = Console()


def run(config: ConnectivityConfig) -> None:
    """Measure all pairs, or those that are missing in the folder, and summarise them.

    Raises
    ------
    ConfigError
        If the network does not say which units may change places, data are too few, or the
        folder holds results of other settings.
    """
    data = _open(config)
    units = units_of(config.model, data.shape, data.classes)
    folder = _begin(config)
    done = _finished(folder / POINTS)
    pairs = [pair for pair in _pairs(config) if pair not in done]
    device = resolve_device(config.device)
    trainer = Trainer(config, data, device)
    scorer = Scorer(trainer.network(config.seeds[0]), data, config.batches, device)
    with watching(console) as watch:
        report = watch("pairs", len(pairs)) if pairs else None
        for number, pair in enumerate(pairs, 1):
            found = _rows(pair, trainer, scorer, units)
            _append(folder / POINTS, found)
            if report:
                report(number, float(found["loss"].mean()))
    console.print(summarise(folder), highlight=False, soft_wrap=True)
    console.print(f"saved to {folder}/: points.csv, summary.md, barriers.png, lines.png")


def _open(config: ConnectivityConfig) -> LabelledData:
    source = open_source(config.dataset.source)
    with console.status("reading the data ..."):
        data = load(source, config.cache_dir)
    return replace(
        data,
        train=subset(data.train, config.subset.train),
        test=subset(data.test, config.subset.test),
    )


def _begin(config: ConnectivityConfig) -> Path:
    """The folder, for these settings; seeds, conditions and beginnings may be added.

    Raises
    ------
    ConfigError
        If it has results of others, or cannot be written.
    """
    folder = Path(config.folder)
    file, wanted = folder / "settings.json", _settings(config)
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        conditions = known["conditions"] | wanted["conditions"]
        if wanted | {"conditions": conditions} != known | {"conditions": conditions} or any(
            known["conditions"][name] != conditions[name] for name in known["conditions"]
        ):
            raise ConfigError(f"folder: {folder} has results of other settings; name another")
        wanted["conditions"] = conditions
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(wanted, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"folder: cannot write {folder}: {error.strerror}") from None
    return folder


def _settings(config: ConnectivityConfig) -> dict[str, Any]:
    """What the results of a folder hold for."""
    drop = {"folder", "seeds", "starts", "device", "cache_dir"}
    return config.model_dump(mode="json", by_alias=True, exclude=drop)


def _pairs(config: ConnectivityConfig) -> list[Pair]:
    return [
        Pair(seed, init, condition, wsa)
        for seed in config.seeds
        for init in config.starts
        for condition in config.conditions
        for wsa in (False, True)
    ]


def _finished(file: Path) -> set[Pair]:
    """The pairs whose points are all there: each is written at once."""
    if not file.exists():
        return set()
    known = pd.read_csv(file)[["seed", "init", "condition", "wsa"]].drop_duplicates()
    rows = zip(*(known[name].tolist() for name in known), strict=True)
    return {Pair(seed, init, condition, wsa == "on") for seed, init, condition, wsa in rows}


def _rows(pair: Pair, trainer: Trainer, scorer: Scorer, units: Units) -> pd.DataFrame:
    facts = [pair.seed, pair.init, pair.condition, "on" if pair.wsa else "off"]
    states = trainer.states(pair)
    rows = [
        [*facts, treatment, apart, alpha, score.loss, score.accuracy]
        for treatment, apart, path in measure(states, scorer, trainer.config, units, pair.seed)
        for alpha, score in zip(path.alphas, path.scores, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _append(file: Path, rows: pd.DataFrame) -> None:
    """Add the points of a pair: the whole file anew, so that none is there in part."""
    known = [pd.read_csv(file)] if file.exists() else []
    with replacing(file) as part:
        pd.concat([*known, rows]).to_csv(part, index=False)


def main() -> None:
    """Run the command: every error ends in one line and exit code 1."""
    words = sys.argv[1:]
    if {"--help", "-h"} & set(words):
        with suppress(BrokenPipeError):
            print(connectivity_help(), flush=True)
        return
    if flags := [word for word in words if word.startswith("-")]:
        fail(_COMMAND, f"{flags[0]}: no such flag; --help shows groups and keys")
    sys.path.append(os.getcwd())  # a model of one's own lies there
    with composing(_COMMAND, words, "connectivity"):
        run(compose(words))
