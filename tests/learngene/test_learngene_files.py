"""Files of learngenes that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.learngene import Wave
from fedwsa.learngene.base import Target
from fedwsa.learngene.gene import Learngene
from fedwsa.models.inputs import described_shape
from tests.given.architecture import IMAGE, component
from tests.given.learngene import CLASSES, VIT, task


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "wave.safetensors"
    Wave(count=2).learn(task(VIT)).save(path)
    return path


def rewrite(file: Path, about: dict[str, Any]) -> None:
    gene = Learngene.load(file)
    facts = {
        "kind": "fedwsa-learngene",
        "version": 4,
        "method": "wave",
        "model": gene.model.model_dump(by_alias=True),
        "shape": described_shape(IMAGE),
        "classes": CLASSES,
        "facts": gene.facts,
        **about,
    }
    save_file(load_file(file), file, {"fedwsa": json.dumps(facts)})


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"version": 0}, "is of version 0, and this program reads 4; distil it anew"),
        ({"kind": "model"}, "holds no learngene"),
        ({"shape": None}, "has damaged metadata"),
        ({"classes": "ten"}, "has damaged metadata: classes is no number"),
        ({"facts": {}}, "does not say the shapes of its templates"),
        ({"facts": {"templates": {}}}, "has no templates for attn.qkv"),
        (
            {"model": {**component("mlp.mlp").model_dump(by_alias=True)}},
            "the learngene is of mlp, and cannot initialise a vit",
        ),
    ],
)
def test_files_of_something_else_are_refused(
    file: Path, about: dict[str, Any], message: str
) -> None:
    rewrite(file, about)
    with pytest.raises(ConfigError, match=message):
        Wave().initialise(Learngene.load(file), Target(VIT, CLASSES))


def test_files_with_wrong_tensors_are_refused(file: Path, tmp_path: Path) -> None:
    gene, name = Learngene.load(file), "scalers/blocks.0.mlp.fc1"
    tensors = dict(gene.tensors)
    cases: dict[str, dict[str, Tensor]] = {
        f"lacks {name}": {k: t for k, t in tensors.items() if k != name},
        "has spare, which does not belong": {**tensors, "spare": torch.ones(1)},
        rf"has {name} of \(1,\), not \(2, 1, 1\)": {**tensors, name: torch.ones(1)},
        f"{name} has values that are NaN": {**tensors, name: tensors[name] * torch.nan},
        f"{name} holds no floating-point": {**tensors, name: tensors[name].long()},
    }
    for message, changed in cases.items():
        replace(gene, tensors=changed).save(tmp_path / "changed.safetensors")
        with pytest.raises(ConfigError, match=message):
            Wave().initialise(
                Learngene.load(tmp_path / "changed.safetensors"), Target(VIT, CLASSES)
            )


def test_a_damaged_file_and_none_at_all_are_refused(file: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="is damaged, or no safetensors file"):
        Learngene.load(file)
    with pytest.raises(ConfigError, match="there is no learngene file"):
        Learngene.load(tmp_path / "none.safetensors")
