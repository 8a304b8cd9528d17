"""A network that was trained elsewhere before: its weights are worth something in a federation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from experiments.commands.simulate import simulate
from fedwsa.models.inputs import ImageShape
from fedwsa.models.library import timm
from fedwsa.schema.compose import compose
from tests.given.large_digits import large_digits

NAME, BATCH = "test_resnet", 32
SHAPE = ImageShape(1, 32, 32)
OTHERS = 900  # of the digits, which no client has


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of 32x32 pixels in a federation's file, and weights that tell odd ones elsewhere."""
    folder = tmp_path_factory.mktemp("finetuning")
    pixels, targets = large_digits()
    np.savez(folder / "digits.npz", x=pixels[OTHERS:], y=targets[OTHERS:])
    torch.manual_seed(0)
    drawn = {"weights": None, "norm": "kept", "freeze": None, "width": 1.0, "depth": None}
    net = timm(SHAPE, 2, name=NAME, **drawn).train()
    inputs = torch.from_numpy(pixels[:OTHERS])[:, None].float() / 255
    labels = torch.from_numpy(targets[:OTHERS] % 2)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(6):
        for batch in torch.randperm(OTHERS).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(net((inputs[batch] - 0.3) / 0.4), labels[batch]).backward()
            optimizer.step()
    save_file(net.state_dict(), folder / "odd.safetensors")
    return folder


@pytest.mark.slow
def test_it_learns_other_classes_sooner_than_one_from_scratch(place: Path) -> None:
    """Its classifier, of two classes, is drawn anew for ten."""
    words = [
        *("dataset=numpy", f"dataset.path={place}/digits.npz", f"cache_dir={place}/cache"),
        *("model=timm", f"model.name={NAME}", "partition=iid"),
        *("rounds=4", "clients.count=4", "local.epochs=1", "local.lr=0.02", "runtime.workers=1"),
    ]
    accuracies = []
    for weights in ("null", place / "odd.safetensors"):
        config = compose([*words, f"model.weights={weights}"])
        accuracies.append(simulate(config, place / Path(weights).stem)["accuracy"])
    assert accuracies[1] > accuracies[0] + 0.1, accuracies
