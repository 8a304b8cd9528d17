"""Who may import whom: the floors of the house, read from the source."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from pathlib import Path

import pytest

from tests.given.floors import FLOORS, ROOT, modules

# The methods are plain PyTorch; only the plug-ins know a framework.
FRAMEWORKS = {"flwr": "flwr", "ray": "ray", "hydra": "hydra", "omegaconf": "hydra"}
MAY_USE = {
    "fedwsa/algorithms": {"flwr"},
    "fedwsa/apps": {"flwr"},
    "fedwsa/wire": {"flwr"},
    "fedwsa/simulation": {"flwr", "ray"},
    "fedwsa/config": {"hydra"},
    "fedwsa/schema": {"hydra"},
    "fedwsa/runfolder/state_files.py": {"flwr"},
}
# What runs at a client knows no framework either: a message reaches it as a mapping.
PURE = ("client.py", "instruction.py", "objective.py", "objectives.py", "overlap.py")
LAUNCHER = "fedwsa/launcher.py"  # starts the commands, which stand above it


def imports(file: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the floor"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(ROOT)))
def test_a_module_imports_only_what_its_floor_allows(file: Path) -> None:
    place = file.relative_to(ROOT)
    own = place.parts[0]
    for name in imports(file):
        top = name.split(".")[0]
        if top in FLOORS and top != own:
            assert FLOORS[top] < FLOORS[own], f"{place} imports {name} from above or beside"
        if own == "fedwsa" and top in FRAMEWORKS:
            assert place.name not in PURE, f"{place} imports {name}"
            allowed = [uses for where, uses in MAY_USE.items() if str(place).startswith(where)]
            assert any(FRAMEWORKS[top] in uses for uses in allowed), f"{place} imports {name}"
        if place.name in PURE:  # and of the wire what knows no framework either
            wire = ("fedwsa.wire.names", "fedwsa.wire.content")
            assert not name.startswith("fedwsa.wire") or name in wire, f"{place} imports {name}"
        if top == "torchvision":
            assert str(place) == "fedwsa/models/torchvision_loader.py"


def _room(name: str) -> str | None:
    """The folder that a module stands in; None of those that stand in none, as seeding."""
    top, *inner = name.split(".")
    if top != "fedwsa":
        return top if top in FLOORS else None
    return inner[0] if inner and (ROOT / "fedwsa" / inner[0]).is_dir() else None


def test_folders_import_those_that_the_page_names_and_all_of_them() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([\w, ]*)\|$", page.split("| folder |")[1], re.MULTILINE)
    allowed = {room: set(filter(None, names.strip().split(", "))) for room, names in rows}
    used: dict[str, set[str]] = {room: set() for room in allowed}
    for file in modules():
        own = _room(".".join(file.relative_to(ROOT).with_suffix("").parts))
        if own in used:
            used[own] |= {
                room for name in imports(file) if (room := _room(name)) not in (None, own)
            }
    assert used == allowed
    for place, room in enumerate(allowed):  # so there is no circle, however long
        assert allowed[room] <= {*list(allowed)[:place]}, f"{room} stands above what it imports"


def test_the_wheel_has_every_folder_with_modules() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in modules()}
    named = {
        name.removeprefix("fedwsa._apps.") for name in project["tool"]["setuptools"]["packages"]
    }
    assert named == folders | {"conf"}


def test_who_imports_within_a_function_says_why() -> None:
    """A comment tells: it is to save the time of starting, or what importing reads."""
    silent = []
    for file in modules():
        source = file.read_text(encoding="utf-8")
        functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
        inner = (node for function in functions for node in ast.walk(function))
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in inner):
            tokens = tokenize.generate_tokens(io.StringIO(source).readline)
            said = " ".join(t.string for t in tokens if t.type == tokenize.COMMENT)
            if not re.search(r"[Ii]mport|[Oo]nly now|spared", said):
                silent.append(str(file.relative_to(ROOT)))
    assert silent == []


# How Flower's own command reads a folder, and --run-config, has no other place.
READS_AS_FLOWER = {"fedwsa/apps/folder.py": {"flwr.common.config"}}


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(ROOT)))
def test_old_flower_apis_are_not_used(file: Path) -> None:
    for name in imports(file) - READS_AS_FLOWER.get(str(file.relative_to(ROOT)), set()):
        assert not f"{name}.".startswith(("flwr.server.", "flwr.client.", "flwr.common."))


def test_the_launcher_alone_names_what_stands_above_it() -> None:
    strings = {
        str(file.relative_to(ROOT)): [
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        for file in modules()
    }
    above = tuple(f"{top}." for top, floor in FLOORS.items() if floor == 2)
    naming = {f for f, said in strings.items() if any(s.startswith(above) for s in said)}
    assert {f for f in naming if f.startswith("fedwsa/")} == {LAUNCHER}
    started = {s for s in strings[LAUNCHER] if s.startswith(above)}
    assert len(started) == 7
    for module in started:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()
