"""Keys of caches: what a value depends on, and nothing that it does not."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedwsa.config.component import Component
from fedwsa.data import keys, sources
from fedwsa.data.federated import open_federated
from fedwsa.data.keys import of_arguments, of_code, of_component, of_files
from fedwsa.data.loading import load
from fedwsa.schema.compose import compose


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where Python finds modules, which are not imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keyed_helper.py").write_text("CUT = 1\n")
    (tmp_path / "table.csv").write_text("1")
    (tmp_path / "keyed_value.py").write_text(
        "def score(x):\n    import keyed_helper\n    return open('table.csv'), keyed_helper.CUT\n"
    )
    return tmp_path


@pytest.mark.parametrize("file", ["keyed_value.py", "keyed_helper.py", "table.csv"])
def test_code_what_it_imports_and_the_files_it_names_are_in_the_key(written, file) -> None:
    named = Component.of("fedwsa.data.partitioners.continuous", value="keyed_value.score")
    before = of_component(named)
    assert before is not None
    assert of_component(named) == before
    (written / file).write_text((written / file).read_text() + "2\n")
    assert of_component(named) != before


@pytest.mark.parametrize("file", ["__init__.py", "b.py", "c.py", "d.py", "sub/__init__.py"])
def test_packages_around_and_modules_that_are_named_to_be_imported_are_in_the_key(
    written, file
) -> None:
    package = written / "keyed_package"
    (package / "sub").mkdir(parents=True)
    for name, code in {
        "__init__.py": "",
        "sub/__init__.py": "",
        "sub/a.py": "from ..b import N\nclass Cuts:\n    one = N\n",
        "b.py": "from .c import N\n",
        "c.py": "import importlib\nN = importlib.import_module('.d', __package__).N\n",
        "d.py": "N = 1\n",
    }.items():
        (package / name).write_text(code)
    before = of_code(["keyed_package.sub.a.Cuts"])
    assert before not in (None, of_code([]))
    assert of_code(["keyed_package.sub.a.Cuts"]) == before
    (package / file).write_text((package / file).read_text() + "M = 2\n")
    assert of_code(["keyed_package.sub.a.Cuts"]) != before


def test_a_module_that_import_is_called_for_is_in_the_key(written) -> None:
    (written / "keyed_value.py").write_text("CUT = __import__('keyed_helper').CUT\n")
    before = of_code(["keyed_value"])
    (written / "keyed_helper.py").write_text("CUT = 2\n")
    assert of_code(["keyed_value"]) != before


def test_what_a_link_in_a_folder_leads_to_is_in_the_key_and_circles_end(written) -> None:
    for name in ("named", "one", "two"):
        (written / name).mkdir()
        (written / name / "n.txt").write_text(name)
    (written / "one" / "back").symlink_to("../two")
    (written / "two" / "back").symlink_to("../one")
    links = [written / "named" / name for name in ("link", "other")]
    found = []
    for targets in (["one"], ["two"], ["one", "one"], ["two", "one"]):
        for link, target in zip(links, targets, strict=False):
            link.unlink(missing_ok=True)
            link.symlink_to(f"../{target}")
        found.append(of_arguments({"where": str(written / "named")}))
    assert None not in found
    assert len(set(found)) == 4


@pytest.mark.parametrize("target", ["itself", "nowhere"])
def test_a_link_that_leads_nowhere_hides_nothing_else(written, target: str) -> None:
    folder = written / "named"
    folder.mkdir()
    (folder / "itself").symlink_to(target)
    found = []
    for text in ("one", "two"):
        (folder / "n.txt").write_text(text)
        found.append(of_arguments({"where": str(folder)}))
    assert None not in found
    assert found[0] != found[1]


def test_strings_that_can_name_nothing_are_passed_by(written) -> None:
    odd = "HALVES = '[\\ud800-\\udbff]'\nNUL = 'a\\0b'\nDEEP = 'x/' * 9 + '\\udfff'\n"
    (written / "keyed_helper.py").write_text(odd)
    assert of_code(["keyed_helper"]) is not None


def test_code_that_changed_since_it_was_imported_has_no_key(written) -> None:
    __import__("keyed_helper")
    try:
        assert of_code(["keyed_helper"]) is None
    finally:
        del sys.modules["keyed_helper"]


def test_edited_code_makes_another_partition_and_the_same_code_none(written, monkeypatch) -> None:
    monkeypatch.setattr(keys, "_BEGAN", 2**63)  # each time as if in a process that begins later
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # which knows a file by whole seconds
    words = ["partition=continuous", "partition.strictness=1.0", "partition.value=edited.score"]
    code = "score = lambda pixels: pixels.flatten(1).float().{}(1).numpy()\n"

    def made(cache: str, statistic: str) -> str:
        (written / "edited.py").write_text(code.format(statistic))
        sys.modules.pop("edited", None)
        spec = compose([*words, "clients.count=4", f"cache_dir={written / cache}"]).data_spec
        return open_federated(spec).partition.hash

    first, second, again = made("cache", "mean"), made("cache", "std"), made("cache", "mean")
    assert len(list((written / "cache" / "partitions").iterdir())) == 2
    assert made("fresh", "std") == second != first == again


def test_files_of_one_size_and_time_differ_by_content(tmp_path: Path) -> None:
    file = tmp_path / "a"
    keys = []
    for text in ("one", "two"):
        file.write_text(text)
        os.utime(file, ns=(0, 0))
        keys.append(of_files([file]))
    assert keys[0] != keys[1]


def idx(root: Path, value: int) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = np.array([2051, 3, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + bytes([value] * 3 * 784))
        labels = np.array([2049, 3], ">i4").tobytes() + bytes([2, 0, 1])
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return root


def test_another_folder_in_the_format_of_mnist_is_another_data_set(tmp_path: Path) -> None:
    for value in (1, 7):
        source = sources.from_torchvision(name="mnist", root=str(idx(tmp_path / str(value), value)))
        assert set(load(source, tmp_path / "cache").train.inputs.unique().tolist()) == {value}


def test_a_full_cache_is_done_without(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # writing more fails, as if full
    try:
        data = load(sources.digits(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(data.train.inputs, sources.digits().decode().train.inputs)
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]
