"""Initialising networks of other sizes: what each method must keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedwsa import seeding
from fedwsa.config.component import Component, ConfigError
from fedwsa.learngene import METHODS, LinearExpansion, Selection, Stages, Standard, Wave, wave
from fedwsa.learngene.base import Target
from fedwsa.learngene.expansion import ExpandedNetwork
from fedwsa.learngene.fit import Recipe, distillation
from fedwsa.learngene.gene import Learngene
from fedwsa.learngene.resize import (
    first_blocks,
    relative_depth,
    resized,
    resized_scalers,
    stage_of_each,
    stages_as,
)
from fedwsa.learngene.stages import share_stages
from fedwsa.models import build_model
from fedwsa.models.architecture import architecture_of, outline
from tests.given.architecture import IMAGE, SMALL, component, shape
from tests.given.learngene import CLASSES, VIT, lesson, task
from tests.given.wave import random_wave


def built(
    model: Component, state: dict[str, Tensor], classes: int = CLASSES, example=IMAGE
) -> nn.Module:
    made = build_model(model, example, classes, seed=5)
    made.load_state_dict(state)
    return made.eval()


def output(model: nn.Module, example=IMAGE) -> Tensor:
    random = torch.Generator().manual_seed(2)
    inputs = torch.randn(3, *example, generator=random)
    if len(example) == 1:
        inputs = torch.randint(0, CLASSES, (3, *example), generator=random)
    with torch.no_grad():
        return model.eval()(inputs)


# Depth and width


def test_depth_rules() -> None:
    assert relative_depth(3, 5) == [0, 2, 4]
    assert relative_depth(5, 3) == [0, 0, 1, 2, 2]  # 0, ½, 1, 1½, 2; halves go to the even one
    assert relative_depth(1, 4) == [0]
    assert first_blocks(2, 4) == [0, 1]
    with pytest.raises(ValueError, match="3 blocks are wanted, and there are only 2"):
        first_blocks(3, 2)


def test_the_stages_of_the_paper() -> None:
    """arXiv 2404.16897: 12 blocks of 5 stages, and the auxiliary network's own 16."""
    assert stage_of_each(12, 5) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    assert stages_as([3, 3, 4, 3, 3]) == [0] * 3 + [1] * 3 + [2] * 4 + [3] * 3 + [4] * 3
    with pytest.raises(ValueError, match="2 blocks cannot have 5 stages"):
        stage_of_each(2, 5)


PLAIN = {**SMALL, "resnet.resnet": {**SMALL["resnet.resnet"], "norm": "none"}}


@pytest.mark.parametrize("name", PLAIN)
def test_a_network_that_is_widened_by_repeating_its_units_is_the_same_function(name: str) -> None:
    """Each unit doubled, each sum over them halved: every activation is the narrow network's.

    (Not with group norm, whose groups would hold other units.)
    """
    narrow = Component.of(f"fedwsa.models.{name}", **PLAIN[name])
    wide = narrow.replace(width=2 * PLAIN[name]["width"])
    example = shape(name)
    model = build_model(narrow, example, CLASSES, seed=0)
    source, target = outline(narrow, example, CLASSES), outline(wide, example, CLASSES)
    made = resized(model.state_dict(), source, target, architecture_of(narrow))
    twice = output(built(wide, made, example=example), example)
    torch.testing.assert_close(twice, output(model, example), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit.vit", "mlp.mlp", "cnn.cnn"])
def test_so_is_one_that_is_widened_by_its_scalers(name: str) -> None:
    narrow, wide = component(name), component(name, width=2 * SMALL[name]["width"])
    known, model = architecture_of(narrow), random_wave(name)
    source, target = outline(narrow, IMAGE, CLASSES), outline(wide, IMAGE, CLASSES)
    twin = build_model(wide, IMAGE, CLASSES, seed=0)
    templates = {k: t.detach() for k, t in wave.templates_of(model, known).items()}
    wave.attach(twin, known, templates)
    tensors = {f"templates/{k}": t for k, t in templates.items()}
    shell = resized(wave.shell_of(model), source, target, known)
    scalers = {k: s.detach() for k, s in wave.scalers_of(model).items()}
    moved = resized_scalers(scalers, source, target, templates, known)
    tensors |= {**shell, **{f"scalers/{k}": s for k, s in moved.items()}}
    wave.load(twin, known, tensors)
    torch.testing.assert_close(output(twin), output(model), rtol=1e-4, atol=1e-5)


# SWS


def shared(model: Component) -> nn.Module:
    made = build_model(model, IMAGE, CLASSES, seed=0)
    share_stages(made, "blocks.", list(range(16)), stages_as([3, 3, 4, 3, 3]))
    return made


def test_sws_of_the_auxiliary_depth_is_the_auxiliary_network() -> None:
    deep = component("vit.vit", width=0.25, depth=16)
    method = Stages(stages=[3, 3, 4, 3, 3])
    gene = method.learn(task(deep))
    made = method.initialise(gene, Target(deep, CLASSES))
    torch.testing.assert_close(output(built(deep, made)), output(shared(deep)))
    # Stored are five blocks and the shell, made are independent copies.
    block = sum(p.numel() for p in shared(deep).blocks[0].parameters())
    whole = sum(p.numel() for p in build_model(deep, IMAGE, CLASSES, seed=0).parameters())
    assert gene.numbers == whole - 11 * block
    pointers = [t.data_ptr() for t in built(deep, made).state_dict().values()]
    assert len(set(pointers)) == len(pointers)


def test_the_gradient_of_a_stage_is_the_sum_over_its_blocks() -> None:
    deep = component("vit.vit", width=0.25, depth=16)
    model, x = shared(deep), torch.randn(2, *IMAGE)
    free = build_model(deep, IMAGE, CLASSES, seed=0)
    free.load_state_dict(model.state_dict())  # its blocks have weights of their own
    for network in (model, free):
        network(x).square().sum().backward()
    name = "attn.qkv.weight"
    total = sum(free.get_parameter(f"blocks.{i}.{name}").grad for i in (6, 7, 8, 9))
    torch.testing.assert_close(model.get_parameter(f"blocks.6.{name}").grad, total)


def test_sws_refuses_what_it_cannot_make() -> None:
    gene = Stages().learn(task(VIT))
    with pytest.raises(ConfigError, match=r"other depths only; the learngene is of width=0\.25"):
        Stages().initialise(gene, Target(component("vit.vit", width=0.5), CLASSES))
    with pytest.raises(ConfigError, match="sws: 3 blocks cannot have 5 stages"):
        Stages().initialise(gene, Target(component("vit.vit", depth=3), CLASSES))
    with pytest.raises(ConfigError, match="add up to 4 blocks, not 6"):
        Stages(stages=[2, 2]).learn(task(VIT))
    with pytest.raises(ConfigError, match="one sequence of equal blocks"):
        Stages().learn(task(component("cnn.cnn")))


# TLEG


def test_tleg_expands_linearly() -> None:
    """θ_A = 1, θ_B = 4 in four blocks, l/L = 0, ¼, ½, ¾: 1, 2, 3, 4; the first is always θ_A."""
    gene = LinearExpansion().learn(task(VIT))
    ones = {k: torch.ones_like(t) for k, t in gene.tensors.items() if k.startswith("base/")}
    fours = {k: torch.full_like(t, 4) for k, t in gene.tensors.items() if k.startswith("slope/")}
    gene = replace(gene, tensors={**gene.tensors, **ones, **fours})
    made = LinearExpansion().initialise(gene, Target(component("vit.vit", depth=4), CLASSES))
    values = [made[f"blocks.{i}.mlp.fc1.weight"].unique().tolist() for i in range(4)]
    assert values == [[1.0], [2.0], [3.0], [4.0]]
    made = LinearExpansion().initialise(gene, Target(component("vit.vit", depth=1), CLASSES))
    assert made["blocks.0.norm1.bias"].unique().tolist() == [1.0]


def test_tleg_of_the_auxiliary_depth_is_the_auxiliary_network() -> None:
    work = task(VIT, steps=3)
    random = seeding.generator(0, "slopes")
    model = ExpandedNetwork(work.network(), "blocks.", list(range(6)), random)
    work.train(model, LinearExpansion())
    made = LinearExpansion().initialise(LinearExpansion().learn(work), Target(VIT, CLASSES))
    torch.testing.assert_close(output(built(VIT, made)), output(model))
    assert model.slope[0].abs().sum() > 0


def test_the_slopes_of_matrices_start_at_0_02_and_the_others_at_zero() -> None:
    """A normal number that is cut at 2 (a hundred σ) is a normal one: σ is off by σ/√(2n)."""
    gene = LinearExpansion().learn(task(VIT))
    slopes = {k: t for k, t in gene.tensors.items() if k.startswith("slope/")}
    assert any("norm" in k for k in slopes)
    for slope in slopes.values():
        if slope.dim() < 2:
            assert not slope.any()
        else:
            off = 5 * 0.02 / (2 * slope.numel()) ** 0.5
            assert slope.std().item() == pytest.approx(0.02, abs=off)


@pytest.mark.parametrize(
    ("name", "temperature", "hard"), [("sws", 1, 0), ("tleg", 1, 0), ("wave", 2, 1)]
)
def test_each_method_has_its_own_loss_unless_one_is_given(name, temperature, hard) -> None:
    teacher, logits = build_model(VIT, IMAGE, CLASSES, seed=3), torch.randn(4, CLASSES)
    x, y = torch.randn(4, *IMAGE), torch.tensor([0, 1, 2, 3])
    own = task(VIT, teacher=teacher)
    expected = distillation(teacher, temperature, hard)(x, logits, y)
    torch.testing.assert_close(own.loss(METHODS[name]())(x, logits, y), expected)
    given = replace(own, temperature=3.0, hard=0.5).loss(METHODS[name]())(x, logits, y)
    torch.testing.assert_close(given, distillation(teacher, 3.0, 0.5)(x, logits, y))


# WAVE


def test_wave_of_the_auxiliary_size_is_the_auxiliary_network() -> None:
    work = task(VIT, steps=3)
    gene = Wave(count=4).learn(work)
    made = Wave().initialise(gene, Target(VIT, CLASSES))
    model, known = work.network(), architecture_of(VIT)
    templates = {k[10:]: t for k, t in gene.tensors.items() if k.startswith("templates/")}
    wave.attach(model, known, templates)
    wave.load(model, known, gene.tensors)
    torch.testing.assert_close(output(built(VIT, made)), output(model))


def test_wave_makes_other_widths_and_depths_and_trains_scalers_only() -> None:
    size = component("vit.vit", width=0.5, depth=2)
    gene = Wave(count=4).learn(task(VIT, family=[size, VIT]))
    target = Target(size, CLASSES, lesson(), Recipe(8, batch_size=16, lr=0.01, augment="none"))
    before = Wave().network(gene, replace(target, recipe=None))
    after = Wave().network(gene, target)
    known = architecture_of(size)
    for name, tensor in wave.state(after, known).items():
        same = torch.equal(tensor, wave.state(before, known)[name])
        assert same != name.startswith("scalers/"), name
    loss = [
        cross_entropy(m.eval()(x), y).item()
        for m in (before, after)
        for x, y in [next(lesson().batches(64, "none", "test"))]
    ]
    assert loss[1] < loss[0]
    assert built(size, Wave().initialise(gene, target))


def test_wave_with_random_scalers_has_the_standard_variance() -> None:
    gene = Wave(count=8).learn(task(VIT))
    made = Wave(start="random").initialise(gene, Target(component("vit.vit", width=1.0), CLASSES))
    standard = build_model(component("vit.vit", width=1.0), IMAGE, CLASSES, seed=0).state_dict()
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight"):
        assert made[name].std().item() == pytest.approx(standard[name].std().item(), rel=0.25)


def test_other_classes_get_a_new_head_that_is_trained() -> None:
    gene = Wave(count=4).learn(task(VIT))
    target = Target(VIT, 3, lesson(classes=3), Recipe(2, batch_size=16, augment="none"))
    made = Wave().initialise(gene, target)
    fresh = build_model(VIT, IMAGE, 3, seed=0).state_dict()
    assert made["head.weight"].shape == (3, 48)
    assert not torch.equal(made["head.weight"], fresh["head.weight"])
    assert torch.equal(made["norm.weight"], gene.tensors["norm.weight"])


def test_the_nearest_widths_are_named_where_a_width_cannot_be_made() -> None:
    wide = component("vit.vit", width=1.0)
    gene = Wave(count=2).learn(task(wide, family=[component("vit.vit", width=0.5), wide]))
    with pytest.raises(
        ConfigError, match=r"of 432x144 .* nearest widths that they can make: 0.5 and 1$"
    ):
        Wave().initialise(gene, Target(component("vit.vit", width=0.75), CLASSES))


def test_smaller_templates_make_the_same_sizes_from_fewer_numbers() -> None:
    """48 units of two heads: blocks of one head, or half of the fully connected units."""
    usual, half = (Wave(count=4, divide=divide).learn(task(VIT)) for divide in (1, 2))
    shapes = [gene.facts["templates"]["attn.qkv"] for gene in (usual, half)]
    assert shapes == [[4, 48, 48], [4, 24, 24]]
    made = Wave().initialise(half, Target(component("vit.vit", width=0.5), CLASSES))
    assert made["blocks.0.attn.qkv.weight"].shape == (288, 96)
    assert half.numbers < usual.numbers
    with pytest.raises(ConfigError, match="templates of 2 units have no 3 equal parts"):
        Wave(divide=3).check(task(VIT))


def test_ablated_templates_are_those_that_were_drawn_and_scalers_those_that_they_start_as() -> None:
    drawn, kept = Wave(count=4).learn(task(VIT)), Wave(count=4, ablate="templates")
    gene = kept.learn(task(VIT, steps=3))
    assert all(torch.equal(gene.tensors[k], t) for k, t in drawn.tensors.items())
    recipe = Recipe(3, batch_size=16, lr=0.01, augment="none")
    target = Target(VIT, CLASSES, lesson(), recipe)
    start = Wave().initialise(gene, replace(target, recipe=None))
    for method, fitted in ((kept, True), (Wave(ablate="scalers"), False)):
        made = method.initialise(gene, target)
        assert all(torch.equal(made[k], start[k]) for k in made) != fitted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 1}, "heads .* have 24 and 48 entries: they must be the same in all sizes"),
        ({"patch": 4}, "is of patch=8, and patch=4 is wanted: only width and depth may differ"),
        ({"mlp_ratio": 2.0}, "is of mlp_ratio=4.0, and mlp_ratio=2.0 is wanted"),
    ],
)
def test_wave_makes_only_other_widths_and_depths(changes: dict[str, Any], message: str) -> None:
    gene = Wave(count=2).learn(task(VIT))
    with pytest.raises(ConfigError, match=message):
        Wave().initialise(gene, Target(component("vit.vit", depth=6, **changes), CLASSES))


def test_what_cannot_be_learned_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="one sequence of equal blocks"):
        Stages().check(task(component("resnet.resnet")))
    with pytest.raises(ConfigError, match="one sequence of equal blocks"):
        LinearExpansion().check(task(component("cnn.cnn")))
    with pytest.raises(ConfigError, match=r"attn.qkv: units \(attention heads"):
        Wave().check(task(VIT, family=[VIT, component("vit.vit", heads=1)]))


# Weight selection, and all of them


def test_selection_takes_units_in_even_distances_and_the_first_blocks() -> None:
    """Two units of four are 0 and 2; of four blocks the first two."""
    big = component("mlp.mlp", width=0.02, depth=4)  # four units
    small = component("mlp.mlp", width=0.01, depth=2)
    teacher = build_model(big, IMAGE, CLASSES, seed=3)
    gene = Selection().learn(task(big, teacher=teacher))
    made = Selection().initialise(gene, Target(small, CLASSES))
    there = teacher.state_dict()
    assert torch.equal(made["hidden0.weight"], there["hidden0.weight"][[0, 2]])
    assert torch.equal(made["hidden1.weight"], there["hidden1.weight"][[0, 2]][:, [0, 2]])
    assert torch.equal(made["head.weight"], there["head.weight"][:, [0, 2]])
    with pytest.raises(ConfigError, match="only parts of the teacher: hidden0"):
        Selection().initialise(gene, Target(component("mlp.mlp", width=1.0), CLASSES))
    with pytest.raises(ConfigError, match="only parts of the teacher: 5 blocks are wanted"):
        Selection().initialise(gene, Target(component("mlp.mlp", width=0.02, depth=6), CLASSES))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_network_of_finite_weights_and_is_saved(
    name: str, tmp_path: Path
) -> None:
    method, teacher = METHODS[name](), build_model(VIT, IMAGE, CLASSES, seed=3)
    gene = method.learn(task(VIT, steps=2, teacher=teacher))
    gene.save(tmp_path / "gene.safetensors")
    again = Learngene.load(tmp_path / "gene.safetensors")
    made, remade = (method.initialise(g, Target(VIT, CLASSES)) for g in (gene, again))
    assert all(torch.equal(made[k], remade[k]) for k in made.keys() | remade.keys())
    assert built(VIT, made)
    assert all(t.isfinite().all() for t in made.values())
    changed = any(
        not torch.equal(made[k], t)
        for k, t in build_model(VIT, IMAGE, CLASSES, 0).state_dict().items()
    )
    assert changed == (name != "standard")


def test_standard_needs_nothing() -> None:
    assert Standard().learn(task(VIT)).numbers == 0
