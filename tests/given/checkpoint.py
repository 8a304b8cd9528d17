"""Runs that end early, and whether two runs are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from flwr.app import (
    Context,
    Message,
)
from flwr.clientapp import ClientApp
from safetensors.torch import load_file

import clients.app
from experiments.commands.simulate import simulate
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from server.rounds import RunError

TINY = ["rounds=5", "clients.count=4", "clients.fraction=0.5", "local.epochs=1", "model.width=0.2"]


def until(config: Config, last: int) -> ClientApp:
    """Our client, until a round after which all fail."""
    app, ours = ClientApp(), clients.app.build(config)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if message.content["config"]["server-round"] > last:
            raise RuntimeError("the power is off")
        return ours(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return ours(message, context)

    return app


def interrupted(folder: Path, cache: str, every: int, last: int, *overrides: str) -> Config:
    own = [*TINY, *overrides, f"cache_dir={cache}", "runtime.cohort=off", "clients.table=true"]
    config = compose([*own, f"checkpoint.every={every}"])
    with pytest.raises(RunError, match="all 2 clients failed"):
        simulate(config, folder, until(config, last))
    return config


def assert_same_run(one: Path, other: Path, *files: str) -> None:
    for file in ("history.csv", "clients.csv", *files):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    models = [run / "model.safetensors" for run in (one, other)]
    assert models[0].exists() == models[1].exists()  # there is none where each client has its own
    left, right = (load_file(model) if model.exists() else {} for model in models)
    assert all(torch.equal(left[name], right[name]) for name in left)
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
