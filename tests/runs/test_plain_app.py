"""A Flower app that knows nothing of this repository but FedWSA and ScopeAlignment."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flwr.simulation import run_simulation

from fedwsa import WeightScope
from tests.given import ROOT, plain_app, plain_sized_app


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
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


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_a_plain_app_of_two_widths_runs_there_too() -> None:
    run_simulation(
        plain_sized_app.server_app,
        plain_sized_app.client_app,
        num_supernodes=3,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    start, arrays, small = (
        plain_sized_app.report[k].to_torch_state_dict() for k in ("start", "arrays", "small")
    )
    assert {k: t.shape for k, t in arrays.items()} == {k: t.shape for k, t in start.items()}
    assert not torch.equal(arrays["0.weight"], start["0.weight"])
    assert torch.equal(small["0.weight"], arrays["0.weight"][:3])


def test_docs_show_exactly_the_lines_of_the_app_of_two_widths() -> None:
    page = (ROOT / "docs" / "sizes.md").read_text()
    section = page.split("## In a Flower app of yours")[1].split("\n## ")[0]
    code = [line for part in section.split("```")[1::2] for line in part.splitlines()[1:]]
    app = {line.strip() for line in Path(plain_sized_app.__file__).read_text().splitlines()}
    assert len(code) >= 8
    assert [line for line in code if line.strip() and line.strip() not in app] == []


@pytest.mark.slow
def test_the_page_for_strangers_runs_as_it_stands_and_shows_its_lines(tmp_path) -> None:
    page = (ROOT / "docs" / "plug-in.md").read_text()
    *shown, app, loop = [part.removeprefix("python\n") for part in page.split("```")[1::2]]
    (tmp_path / "app.py").write_text(app)
    (tmp_path / "loop.py").write_text(loop)
    lines = {line.split("  #")[0].strip() for line in app.splitlines()}
    asked = [line.split("  #")[0] for part in shown for line in part.splitlines() if line]
    assert len(asked) == 6
    assert [line for line in asked if line not in lines] == []
    assert sum("# FedWSA" in line for line in app.splitlines()) == 5
    for file, said in (
        ("app.py", "layers: weight KL of the clients: "),
        ("loop.py", "KL to the target: ["),
    ):
        done = subprocess.run(
            [sys.executable, file], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert said in done.stdout


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
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## Plug it into your own Flower app")[1].split("\n## ")[0]
    code = [line for part in section.split("```")[1::2] for line in part.splitlines()[1:]]
    app = {line.strip() for line in Path(plain_app.__file__).read_text().splitlines()}
    shown = [line.split("  #")[0].strip() for line in code]
    assert len(shown) >= 8
    assert [line for line in shown if line and line not in app and line != "..."] == []
