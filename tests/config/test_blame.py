"""Mistakes in somebody's own models and data: one line, with the place in their file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.commands import simulate
from fedwsa.config.blame import told
from fedwsa.config.component import ConfigError
from fedwsa.data.examples import Examples
from fedwsa.data.images import ImageData
from fedwsa.data.loading import Source, load

MODELS = """
import torch
from torch import nn

def nothing(shape, classes):
    nn.Linear(1, 1)

def wrong_signature(shape):
    return nn.Identity()

def raises(shape, classes):
    raise RuntimeError("my bug")

def wide(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 13))

def narrow(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 10))

class Pair(nn.Linear):
    def forward(self, x):
        return x, x

def pair(shape, classes):
    return Pair(64, 10)

class Trains(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        if self.training:
            raise KeyError("oh")
        return self.head(x.flatten(1))

def trains(shape, classes):
    return Trains()
"""


def refused(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> str:
    """The one line that the command ends with."""
    monkeypatch.setattr(sys, "argv", ["fedwsa", "rounds=1", "clients.count=2", *words])
    with pytest.raises(SystemExit) as ended:
        simulate.main()
    assert ended.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert not Path("runs").exists()
    return line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of one's own, whose modules are found, and forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FEDWSA_CACHE", str(tmp_path / "cache"))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nothing", "model: nothing must return a torch.nn.Module, not NoneType"),
        ("wrong_signature", "model: wrong_signature(shape) is called with 2 arguments: too many"),
        ("raises", "model: RuntimeError: my bug (my_models.py:12)"),
        ("wide", "model: it answers two examples by (2, 13); with 10 classes that must be (2, 10)"),
        ("narrow", "model: it cannot answer inputs (2, 1, 8, 8): RuntimeError: mat1 and mat2"),
        ("pair", "model: it must answer by a tensor of scores, not by a tuple"),
        ("trains", "model: it cannot be trained: KeyError: 'oh' (my_models.py:34)"),
        ("missing", "model._target_: my_models has no missing"),
    ],
)
def test_a_model_that_cannot_be_used(name, line, folder, monkeypatch, capsys) -> None:
    (folder / "my_models.py").write_text(MODELS)
    words = [f"model._target_=my_models.{name}", "~model.width", "~model.depth"]
    assert refused(words, monkeypatch, capsys).startswith(f"fedwsa: {line}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def f(:", "importing my_module failed: SyntaxError: invalid syntax (my_module.py:1)"),
        ("\n{}['x']", "importing my_module failed: KeyError: 'x' (my_module.py:2)"),
        (
            "import nowhere",
            "cannot import my_module.net: No module named 'nowhere' (my_module.py:1)",
        ),
    ],
)
def test_a_module_that_cannot_be_imported(text, line, folder, monkeypatch, capsys) -> None:
    (folder / "my_module.py").write_text(text)
    said = refused(["model._target_=my_module.net"], monkeypatch, capsys)
    assert said == f"fedwsa: model._target_: {line}"


def test_a_module_that_hides_behind_another(folder, monkeypatch, capsys) -> None:
    (folder / "server.py").write_text("def net(): ...")
    said = refused(["model._target_=server.net"], monkeypatch, capsys)
    assert said.startswith("fedwsa: model._target_: server has no net (it is /")
    assert said.endswith("server/__init__.py; your server.py needs another name)")


def images(inputs: torch.Tensor, labels: torch.Tensor) -> ImageData:
    return ImageData.of(Examples(inputs, labels), Examples(inputs, labels))


PIXELS = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("decode", "line"),
    [
        (lambda: {}["nope"], "KeyError: 'nope' (tests/config/test_blame.py:"),
        (
            lambda: (PIXELS, LABELS),
            "TypeError: decode must return ImageData or TextData or Measurements or ",
        ),
        (lambda: images(PIXELS.numpy(), LABELS), "Examples: inputs must be a torch tensor, not nu"),
        (lambda: images(PIXELS, LABELS[:5]), "Examples: 5 labels for 6 inputs ("),
        (lambda: images(PIXELS, LABELS.int()), "train: labels must be int64, not int32"),
        (lambda: images(PIXELS, LABELS - 1), "train: labels must not be negative; there is -1"),
        (lambda: images(PIXELS[:, 0], LABELS), "images must be uint8 of shape (N, C, H, W), pixel"),
        (lambda: images(PIXELS.float(), LABELS), "images must be uint8 of shape (N, C, H, W), pix"),
        (
            lambda: ImageData(Examples(PIXELS, LABELS), Examples(PIXELS, LABELS), 2, [0.0], [1.0]),
            "train: labels run up to 2, and there are 2 classes",
        ),
    ],
)
def test_a_source_that_makes_no_data_set_and_leaves_nothing(decode, line: str, tmp_path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Source("mine", decode), tmp_path)
    assert str(caught.value).startswith(f"dataset: mine: {line}")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.*"))


def test_a_test_set_may_be_a_part_of_the_training_set(tmp_path) -> None:
    inputs = PIXELS + torch.arange(6, dtype=torch.uint8)[:, None, None, None]
    data = ImageData.of(Examples(inputs, LABELS), Examples(inputs[2:5], LABELS[2:5]))
    loaded = load(Source("mine", lambda: data), tmp_path)
    assert loaded.test.inputs[:, 0, 0, 0].tolist() == [2, 3, 4]
    assert loaded.test.labels.tolist() == [2, 0, 1]


SOURCE = """
import torch
from fedwsa.data.examples import Examples
from fedwsa.data.images import ImageData
from fedwsa.data.loading import Source

def mine():
    def decode():
        part = Examples(torch.full((6, 1, 8, 8), {pixel}, dtype=torch.uint8), torch.arange(6) % 3)
        return ImageData.of(part, part)
    return Source("mine", decode)
"""


def test_a_source_that_was_changed_is_decoded_anew(folder) -> None:
    seen = []
    for pixel in (7, 9):
        (folder / "my_source.py").write_text(SOURCE.format(pixel=pixel))
        sys.modules.pop("my_source", None)
        invalidate_caches()
        source = import_module("my_source").mine()
        seen.append(int(load(source, folder / "cache").train.inputs.max()))
    assert seen == [7, 9]


def test_an_error_without_a_place_of_ones_own_has_none() -> None:
    with pytest.raises(ValueError, match="cannot reshape") as caught:
        np.zeros(2).reshape(3)
    said = told(caught.value)
    assert said.startswith(
        "ValueError: cannot reshape array of size 2 into shape (3,) (tests/config/"
    )
    assert told(RuntimeError("two\nlines")) == "RuntimeError: two lines"
    assert told(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert told(ValueError("for a person"), kind=False) == "for a person"
