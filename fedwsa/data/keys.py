"""What a cached thing depends on, in a word: files by their content, code by its source.

A key that differs makes the thing anew; one that cannot be known (None) keeps it out of the caches.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache, lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, resolve_name
from itertools import islice
from pathlib import Path
from typing import Any

from fedwsa.config.component import Component
from fedwsa.data.cache import place

_BEGAN = time.time_ns()
_READ = 1 << 24  # bytes: more are not read to know whether they are the same
_MANY = 10_000  # entries of a folder: of more nothing is known
_LONGEST = 255  # of a file's name
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_OURS = "fedwsa"
_HERE = Path(__file__).resolve().parent
_STDLIB = str(Path(sysconfig.get_path("stdlib")).resolve()) + os.sep
_PACKAGES = {"site-packages", "dist-packages"}


def digest(*parts: object) -> str:
    """SHA-256 of how the parts print."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def of_files(files: Collection[Path]) -> str:
    """The content of files in their order; of much, its size and when it was written and moved."""
    stats = [file.stat() for file in files]
    if sum(stat.st_size for stat in stats) <= _READ:
        return digest([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    return digest([(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in stats])


def of_arguments(arguments: Mapping[str, Any]) -> str | None:
    """Arguments, with the content of the files and folders that they name; None: of too many."""
    named = [_of_place(_path(text)) for text in _strings(arguments) if _may_be_path(text)]
    return None if None in named else digest(arguments, named)


def of_component(component: Component, *functions: Callable[..., Any]) -> str | None:
    """Arguments and code of a component, and of functions that it makes or names; None: unknown."""
    paths = [text for text in _strings(component.arguments) if _DOTTED.fullmatch(text)]
    modules = [path.rpartition(".")[0] for path in [component.target, *paths]]
    modules = [m for m in modules if m == _top(m) or _file_of(_top(m)) is not None]
    code = of_code(modules, *functions)
    arguments = of_arguments(component.arguments)
    return None if code is None or arguments is None else digest(component.target, arguments, code)


def of_code(modules: Iterable[str], *functions: Callable[..., Any]) -> str | None:
    """The source of modules, of those that functions stand in, and of all that they import.

    With a module the packages that it lies in are imported, and modules that it names to
    ``import_module`` or ``__import__`` in a string.

    Of installed packages their versions. With the source stand the files and the variables of the
    environment that it names in a string. None: there is no source, or it has changed since it
    was imported, so that what runs is not what stands in the file.
    """
    waiting = [*_with_packages([*modules, *map(_module_of, functions)])]
    seen: dict[str, object] = {}
    files: set[Path | None] = set()
    while waiting:
        name = waiting.pop()
        top = _top(name)
        if name in seen or (top in sys.stdlib_module_names and top != "__main__"):
            continue
        file = _file_of(name)
        if file in files:  # a name in a module that is known
            continue
        if top == _OURS and file is not None and file.is_relative_to(_HERE.parent):
            seen[_OURS] = _ours()
        elif file is None:
            if name == "__main__":  # typed in, there is no file
                return None
            seen[name] = None
        elif str(file).startswith(_STDLIB) or not _PACKAGES.isdisjoint(file.parts):
            seen[top] = _version(top)
        else:
            if name in sys.modules and file.stat().st_ctime_ns > _BEGAN:
                return None
            files.add(file)
            content = file.read_bytes()
            imported, strings = _read(name, file, content)
            named = [_of_string(text, file.parent) for text in strings]
            if None in named:
                return None
            seen[str(file)] = (hashlib.sha256(content).hexdigest(), named)
            waiting += _with_packages(imported)
    return digest(sys.version_info[:3], sorted(seen.items(), key=str))


def versions(*packages: str) -> dict[str, str]:
    """The versions of installed packages; empty where there is none."""
    return {package: _version(package) for package in packages}


def _module_of(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _with_packages(modules: Iterable[str]) -> Iterator[str]:
    """Each module, then the packages around it: taken from the end they come first, as imported."""
    for name in modules:
        while name:
            yield name
            name = name.rpartition(".")[0]


def _top(module: str) -> str:
    return module.partition(".")[0]


@cache
def _ours() -> str:
    """All that data are made with here, by its source."""
    files = [*sorted(_HERE.glob("*.py")), _HERE.parent / "seeding.py"]
    return of_files(files)


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # another name than the module's
        file = _file_of(package)
        return "" if file is None else of_files([file])


def _file_of(module: str) -> Path | None:
    """The file of a module, found without importing it."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is not None:
        return Path(loaded).resolve()
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # a module that was made by hand has none
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin).resolve() if spec.has_location and spec.origin else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *rest)
        for file in (path / "__init__.py", path.with_suffix(".py"), *path.parent.glob("*.so")):
            if file.is_file() and (file.suffix == ".py" or file.name.startswith(f"{path.name}.")):
                return file.resolve()
    # What follows the dot is no module but a name in one.
    return _file_of(module.rpartition(".")[0])


@lru_cache(maxsize=256)
def _read(module: str, file: Path, content: bytes) -> tuple[list[str], list[str]]:
    """Modules that a file imports, anywhere in it, and its strings that may be names of files."""
    if file.suffix != ".py":
        return [], []
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    imported, strings = [], []
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute("." * node.level + (node.module or ""), package)
            imported += (
                [origin, *(f"{origin}.{alias.name}" for alias in node.names)] if origin else []
            )
        elif isinstance(node, ast.Call) and (named := _imports(node)):
            imported.append(_absolute(named, package))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings += [node.value] if _may_be_path(node.value) else []
    return imported, sorted(set(strings))


def _absolute(module: str, package: str) -> str:
    """A module by its whole name; empty if there is no package that it could be relative to."""
    try:
        return resolve_name(module, package)
    except ImportError:
        return ""


def _imports(call: ast.Call) -> str:
    """The module that a call of ``import_module`` or ``__import__`` names in a string."""
    called = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if called not in ("import_module", "__import__") or not call.args:
        return ""
    named = call.args[0]
    return str(named.value) if isinstance(named, ast.Constant) else ""


def _may_be_path(text: str) -> bool:
    return 0 < len(text) <= _LONGEST and "\n" not in text and "\0" not in text


def _strings(value: Any) -> Iterator[str]:
    """All strings in nested arguments."""
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _of_string(text: str, folder: Path) -> str | None:
    """What a string in a source may stand for: a variable of the environment, a file."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # half a surrogate pair, as in a regular expression: no name
        return ""
    places = [_path(text)] if Path(text).is_absolute() else [_path(text), folder / text]
    if any(p.is_dir() and p.resolve() in folder.resolve().parents for p in places):
        places = []  # "." or "/": more a separator than a place
    found = [_of_place(p) for p in places]
    return None if None in found else digest(os.environ.get(text), found)


def _path(text: str) -> Path:
    try:
        return place(text)
    except RuntimeError:  # ~ and no such person
        return Path(text)


def _of_place(path: Path) -> str | None:
    """A file or all that is in a folder; empty if there is neither, None if it is too much."""
    if str(path).startswith(("/proc/", "/sys/", "/dev/")):  # the machine's state, not content
        return ""
    try:
        if path.is_file():
            return of_files([path])
        if not path.is_dir():
            return ""
        found = list(islice(_inside(path), _MANY))
        files = sorted(file for file in found if file.is_file())
        names = [str(file.relative_to(path)) for file in files]
        return None if len(found) == _MANY else digest(names, of_files(files))
    except OSError:  # nor can anybody else here read it
        return ""


def _inside(folder: Path, around: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """All that is in a folder, through links too, but not around in a circle of them."""
    try:
        entries = sorted(folder.iterdir())
        around |= {_identity(folder.stat())}
    except OSError:  # nor can anybody else here read it
        return
    for path in entries:
        if not path.is_dir():  # nor is a link that leads to itself
            yield path
        elif _identity(path.stat()) not in around:
            yield path
            yield from _inside(path, around)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
