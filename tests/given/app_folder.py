"""A Flower App in a folder, of the layout that ``flwr new`` makes: logistic regression in NumPy."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "made-app"
version = "1.0.0"
description = "An app of a test"
license = "Apache-2.0"
dependencies = ["flwr[simulation]>=1.41", "numpy"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "madeapp.server_app:app"
clientapp = "madeapp.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 2
learning-rate = 0.5
model.bias = true
greeting = "hello"
least = 2
"""

_FILES = {
    "__init__.py": "",
    "task.py": """
        import numpy as np


        def data(partition, of):
            random = np.random.default_rng([partition, of])
            x = random.normal(partition, 1.0, (20, 3))
            return x, (x.sum(1) > 0).astype(float)


        def start(bias):
            return [np.zeros(3), np.zeros(1 if bias else 0)]


        def step(weights, x, y, rate):
            w, b = weights
            error = 1 / (1 + np.exp(-(x @ w + b.sum()))) - y
            return [w - rate * x.T @ error / len(y), b - rate * error.mean()]
    """,
    "client_app.py": """
        import os

        from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
        from flwr.clientapp import ClientApp

        from madeapp.task import data, step

        app = ClientApp()


        @app.train()
        def train(msg: Message, context: Context):
            weights = msg.content["arrays"].to_numpy_ndarrays()
            seen = context.state.get("seen", MetricRecord({"rounds": 0}))
            context.state["seen"] = MetricRecord({"rounds": seen["rounds"] + 1})
            own, of = context.node_config["partition-id"], context.node_config["num-partitions"]
            x, y = data(own, of)
            rate = context.run_config["learning-rate"] * msg.content["config"]["shrink"]
            weights = step(weights, x, y, rate)
            said = {"num-examples": len(y) + own, "rounds": seen["rounds"] + 1}
            content = {"arrays": ArrayRecord(weights), "metrics": MetricRecord(said)}
            return Message(RecordDict(content), reply_to=msg)


        @app.evaluate()
        def evaluate(msg: Message, context: Context):
            (w, b), (x, y) = msg.content["arrays"].to_numpy_ndarrays(), data(7, 1)
            right = float((((x @ w + b.sum()) > 0) == y).mean())
            said = MetricRecord({"num-examples": len(y), "right": right})
            return Message(RecordDict({"metrics": said}), reply_to=msg)
    """,
    "server_app.py": """
        import json
        from pathlib import Path

        from flwr.app import ArrayRecord, ConfigRecord, Context
        from flwr.serverapp import Grid, ServerApp
        from flwr.serverapp.strategy import FedAvg

        from madeapp.task import start

        app = ServerApp()


        @app.main()
        def main(grid: Grid, context: Context) -> None:
            run = context.run_config
            print(run["greeting"])
            arrays = ArrayRecord(start(run["model.bias"]))
            rounds, config = run["num-server-rounds"], ConfigRecord({"shrink": 0.5})
            # Flower's simulation starts this while its nodes are still registering.
            strategy = FedAvg(min_available_nodes=run["least"])
            result = strategy.start(grid, arrays, num_rounds=rounds, train_config=config)
            left = {
                "weights": [a.tolist() for a in result.arrays.to_numpy_ndarrays()],
                "train": [dict(m) for m in result.train_metrics_clientapp.values()],
                "evaluate": [dict(m) for m in result.evaluate_metrics_clientapp.values()],
                "config": dict(run),
                "node": [context.node_id, dict(context.node_config)],
                "app": [grid.run.fab_id, grid.run.fab_version, dict(grid.run.override_config)],
                "nodes": len(list(grid.get_node_ids())),
            }
            Path("left.json").write_text(json.dumps(left))
    """,
}


def write_app(folder: Path, **changed: str) -> Path:
    """Write the app; of ``changed``, file names without ending are replaced."""
    (folder / "madeapp").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(changed.pop("pyproject", _PROJECT))
    for name, text in _FILES.items():
        text = changed.pop(name.removesuffix(".py"), text)
        (folder / "madeapp" / name).write_text(dedent(text))
    assert not changed
    return folder


def project_with(more: str) -> str:
    """Its ``pyproject.toml``, with more at the end."""
    return _PROJECT + more
