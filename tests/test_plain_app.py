"""A Flower app that knows nothing of this repository but FedWSA and ScopeAlignment."""

from __future__ import annotations

import ast
from pathlib import Path

import torch
from flwr.simulation import run_simulation

from fedwsa import WeightScope
from tests import plain_app


def test_it_runs_in_flower_s_simulation_with_flower_s_own_start() -> None:
    run_simulation(
        plain_app.server_app,
        plain_app.client_app,
        num_supernodes=2,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    report = plain_app.report
    arrays = report["arrays"].to_torch_state_dict()
    averaged = WeightScope.measure(arrays)
    assert averaged.names == ("weight",)
    torch.testing.assert_close(report["scopes"].averaged.variance, averaged.variance)
    assert report["target"] is report["scopes"].fused
    assert report["scopes"].kl[0] > 0


def test_it_imports_only_the_two_names() -> None:
    tree = ast.parse(Path(plain_app.__file__).read_text())
    ours = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedwsa")
        for alias in node.names
    ]
    assert ours == ["FedWSA", "ScopeAlignment"]


def test_the_readme_shows_exactly_these_lines() -> None:
    # Every line of the README's two snippets stands in the app that the test above runs.
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    section = readme.split("## Plug it into your own Flower app")[1].split("\n## ")[0]
    code = [line for part in section.split("```")[1::2] for line in part.splitlines()[1:]]
    app = {line.strip() for line in Path(plain_app.__file__).read_text().splitlines()}
    shown = [line.split("  #")[0].strip() for line in code]
    assert len(shown) >= 8
    assert [line for line in shown if line and line not in app and line != "..."] == []
