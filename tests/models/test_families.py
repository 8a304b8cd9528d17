"""Sizes of timm's networks: those that it has itself, and what federations make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.commands.simulate import simulate
from fedwsa.config.component import Component, ConfigError
from fedwsa.models import build_model
from fedwsa.models.architecture import architecture_of, outline
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from tests.given.large_digits import large_digits

IMAGE, CLASSES = ImageShape(3, 32, 32), 7


def component(name: str, width: float = 1.0, depth: int | None = None, **more: object) -> Component:
    usual = {"weights": None, "norm": "kept", "freeze": None, "width": width, "depth": depth}
    return Component.of("fedwsa.models.library.timm", name=name, **{**usual, **more})


def shapes(made: Component) -> dict[str, torch.Size]:
    model = build_model(made, IMAGE, CLASSES, 0)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("vit_tiny_patch16_224", 2.0, None), ("vit_small_patch16_224", 1.0, None)),
        (("vit_small_patch16_224", 1.0, None), ("vit_base_patch16_224", 0.5, 12)),
        (("convnext_femto", 1.0, None), ("convnext_pico", 0.75, None)),
        (("convnext_pico", 0.5, 3), ("convnext_nano", 0.4, 3)),
        (("resnet18", 1.0, 1), ("resnet10t", 1.0, None)),
    ],
)
def test_the_library_s_own_sizes_are_sizes_of_each_other(one, other) -> None:
    """Name by name and shape by shape; of ResNets but for the stem, which is another."""
    found, expected = shapes(component(*one)), shapes(component(*other))
    if one[0] == "resnet18":
        found, expected = (
            {name: shape for name, shape in of.items() if ".conv" in name and "layer" in name}
            for of in (found, expected)
        )
    assert found == expected


FAMILIES = ["vit_tiny_patch16_224", "convnext_atto", "resnet18", "resnet18d", "resnet50"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_smaller_one_is_a_part_of_a_larger_one(name: str) -> None:
    """All its tensors are there, at most as large; classes and channels of images stay."""
    small, large = component(name, 2 / 3, 1), component(name, 4 / 3, 2)
    narrow, wide = shapes(small), shapes(large)
    assert narrow.keys() <= wide.keys()
    for key, shape in narrow.items():
        assert all(a <= b for a, b in zip(shape, wide[key], strict=True)), key
    known = architecture_of(small)
    model = build_model(small, IMAGE, CLASSES, 0).eval()
    assert model(torch.zeros(2, *IMAGE)).shape == (2, CLASSES)
    head = [key for key in narrow if key.startswith(known.classifier)]
    assert {narrow[key][0] for key in head} == {CLASSES}
    for group in known.groups:
        members = [key for key in wide if known.group(key) == group]
        assert all(wide[key][2:] == wide[members[0]][2:] for key in members)
    blocks = {known.block(key)[:2] for key in wide if known.block(key)}
    assert len(blocks) >= 2


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_plain_stem_is_scaled_and_the_rest_as_the_library_draws_it(name: str) -> None:
    model = build_model(component(name, 0.5), IMAGE, CLASSES, 0)
    first = model.get_submodule("layer1.0")
    assert model.get_parameter("conv1.weight").shape == (32, 3, 7, 7)
    assert first.get_parameter("conv1.weight").shape[1] == 32
    assert (first.downsample is None) == (name == "resnet18")
    deviation = float(model.get_parameter("conv1.weight").detach().std())
    assert deviation == pytest.approx((2 / (32 * 49)) ** 0.5, rel=0.05)  # He's, of what it gives


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            component("vit_tiny_patch16_224", 0.5),
            r"width=0.5 of 3 heads are no whole heads; take a",
        ),
        (component("regnety_002", 0.5), r"regnety_002 has no width and depth; timm's vision trans"),
        (component("resnet18", 0.5, weights="DEFAULT"), r"weights=DEFAULT are of the network as"),
        (component("resnet18", 0.0), r"model.width: input should be greater than 0"),
        (component("resnet18", 1.0, 0), r"model.depth: input should be greater than 0"),
    ],
)
def test_a_size_that_cannot_be_is_refused_in_one_line(made: Component, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_model(made, IMAGE, CLASSES, 0)


def test_of_other_networks_nobody_knows_how_weights_hang_together() -> None:
    with pytest.raises(ConfigError, match=r"^model: nothing says how the weights of timm hang tog"):
        outline(component("regnety_002"), IMAGE, CLASSES)


RUNS = {
    "a transformer by templates": ("wave", "vit_tiny_patch16_224", [1 / 3, 2 / 3], []),
    "a transformer by slices": ("heterofl", "vit_tiny_patch16_224", [1 / 3, 2 / 3], []),
    "a residual network by templates": ("wave", "resnet18d", [0.25, 0.5], ["model.norm=group"]),
    "a residual network by slices": ("heterofl", "resnet18", [0.25, 0.5], ["model.norm=group"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_clients_of_two_sizes_learn_together(kind: str, tmp_path: Path) -> None:
    strategy, name, widths, more = RUNS[kind]
    pixels, labels = large_digits()
    np.savez(tmp_path / "digits.npz", x=pixels[:400], y=labels[:400])
    words = [
        *("dataset=numpy", f"dataset.path={tmp_path}/digits.npz", "partition=iid"),
        *("model=timm", f"model.name={name}", "model.depth=1", f"strategy={strategy}", *more),
        *("rounds=2", "clients.count=2", "local.epochs=2", "local.lr=0.02", "runtime.workers=1"),
        *(f"sizes={{S: {{width: {widths[0]}}}, L: {{width: {widths[1]}}}}}", "clients.sizes=[S,L]"),
        *("~sizes.M", f"cache_dir={tmp_path}/cache"),
    ]
    simulate(compose(words), tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["failed"].isna().all()
    assert history["train_loss"].iloc[1] < history["train_loss"].iloc[0]
