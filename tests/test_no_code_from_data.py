"""No file and no message is ever run: nothing is unpickled or evaluated, in any of our modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.given.floors import ROOT, modules

MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
NAMES = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "read_pickle",
    "unsafe_load",
    "full_load",
    "unsafe_load_all",
    "full_load_all",
    "loads_all",
}


def dangers(code: str) -> list[str]:
    """What in a module could run what it reads, with the line."""
    found = []
    for node in ast.walk(ast.parse(code)):
        said = None
        if isinstance(node, ast.Import):
            said = next((a.name for a in node.names if MODULES & set(a.name.split("."))), None)
        elif isinstance(node, ast.ImportFrom):
            parts = {*(node.module or "").split("."), *(a.name for a in node.names)}
            said = next(iter(MODULES & parts), None)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            said = node.value.id if node.value.id in NAMES else None
        elif isinstance(node, ast.Attribute):
            said = _attribute(node)
        elif isinstance(node, ast.Call):
            said = _call(node)
        if said:
            found.append(f"{said}, line {node.lineno}")
    return found


def _attribute(node: ast.Attribute) -> str | None:
    whose = node.value.id if isinstance(node.value, ast.Name) else None
    if node.attr in MODULES | METHODS:
        return node.attr
    if whose == "yaml" and node.attr in ("load", "load_all", "Loader", "UnsafeLoader"):
        return f"yaml.{node.attr}"
    return f"builtins.{node.attr}" if whose == "builtins" and node.attr in NAMES else None


def _call(node: ast.Call) -> str | None:
    """Loaders that are safe or not by an argument."""
    words = {k.arg: k.value for k in node.keywords}
    if not _is(words.get("allow_pickle", ast.Constant(False)), False):
        return "allow_pickle"
    if isinstance(node.func, ast.Name) and node.func.id in NAMES:
        return node.func.id
    name = ast.unparse(node.func)
    if name in ("torch.load", "load_state_dict_from_url", "torch.hub.load_state_dict_from_url"):
        return None if _is(words.get("weights_only"), True) else f"{name} without weights_only"
    return name if name == "torch.hub.load" else None


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_runs_nothing_that_it_reads(file: Path) -> None:
    assert dangers(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import ray.cloudpickle as p",
        "from torch.serialization import pickle",
        "from ray import cloudpickle",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=wished)",
        "np.load(file, allow_pickle=True)",
        "pd.read_pickle(file)",
        "yaml.load(text, Loader=L)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "run = exec",
        "builtins.eval(text)",
        "torch.hub.load('a', 'b')",
    ],
)
def test_the_search_finds(code: str) -> None:
    assert len(dangers(code)) >= 1


def test_the_search_leaves_in_peace() -> None:
    code = "model.eval(); yaml.safe_load(t); torch.load(f, weights_only=True); np.load(f)"
    assert dangers(code) == []
