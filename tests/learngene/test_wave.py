"""WAVE: what the Kronecker rule must satisfy, before anything is learned with it."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from fedwsa.learngene import kronecker, wave
from fedwsa.learngene.kronecker import kronecker as weight_of
from fedwsa.models import blank_inputs, build_model
from fedwsa.models.architecture import Architecture, Outline, architecture_of, outline
from tests.given import ROOT
from tests.given.architecture import CLASSES, IMAGE, SMALL, component, network, shape
from tests.given.wave import random_wave

TEMPLATED = [name for name in SMALL if architecture_of(component(name)).groups]
TABLE = Architecture(groups={"all": r"weight$"})


def test_the_rule_is_a_sum_of_kronecker_products() -> None:
    s, t = torch.randn(3, 2, 4), torch.randn(3, 5, 6)
    expected = sum(torch.kron(s[i], t[i]) for i in range(3))
    torch.testing.assert_close(weight_of(s, t), expected)


def test_a_convolution_s_kernel_is_kept_whole() -> None:
    """For each place of the kernel the rule is that of a linear layer."""
    s, t = torch.randn(3, 2, 4), torch.randn(3, 5, 6, 3, 2)
    weight = weight_of(s, t)
    assert weight.shape == (10, 24, 3, 2)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(weight[..., i, j], weight_of(s, t[..., i, j]))


def test_one_template_and_a_scaler_of_one_give_the_template() -> None:
    t = torch.randn(1, 5, 6)
    assert torch.equal(weight_of(torch.ones(1, 1, 1), t), t[0])


def test_the_structured_forward_equals_the_materialised_one() -> None:
    s, t, x = (torch.randn(*n, dtype=torch.float64) for n in ((3, 2, 4), (3, 5, 6), (7, 2, 24)))
    torch.testing.assert_close(
        kronecker.structured_linear(x, s, t),
        x @ weight_of(s, t).T,
        rtol=1e-12,
        atol=1e-12,
    )


def test_a_linear_layer_takes_the_cheaper_way_and_both_have_its_gradients() -> None:
    layer = nn.Linear(64, 64).double()
    wave.attach(nn.ModuleDict({"l": layer}), TABLE, {"all": torch.randn(8, 16, 16).double()})
    rule, scalers = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    assert kronecker.structured_is_cheaper(1, scalers, rule.templates)
    assert not kronecker.structured_is_cheaper(64, scalers, rule.templates)
    for rows in (1, 64):
        x = torch.randn(rows, 64, dtype=torch.float64)
        grads = []
        for y in (layer(x), x @ layer.weight.T + layer.bias):
            y.square().sum().backward()
            grads.append((scalers.grad, rule.templates.grad))
            scalers.grad = rule.templates.grad = None
        torch.testing.assert_close(*grads)


def test_a_planted_weight_is_recovered_by_least_squares() -> None:
    s, t = torch.randn(3, 2, 4), torch.randn(3, 5, 6, 3, 3)
    torch.testing.assert_close(kronecker.fit_scalers(weight_of(s, t), t), s, rtol=1e-4, atol=1e-5)


def test_templates_that_repeat_each_other_give_finite_scalers() -> None:
    t = torch.randn(1, 5, 6).repeat(2, 1, 1)
    s = kronecker.fit_scalers(weight_of(torch.ones(2, 2, 2), t), t)
    torch.testing.assert_close(s, torch.ones(2, 2, 2), rtol=1e-4, atol=1e-4)


def some_inputs(name: str) -> torch.Tensor:
    """Two images, or two sequences of characters."""
    blank = blank_inputs(shape(name), 2)
    if blank.is_floating_point():
        return torch.randn(blank.shape)
    return torch.randint(CLASSES, blank.shape)


@pytest.mark.parametrize("name", TEMPLATED)
def test_a_planted_network_is_recovered(name: str) -> None:
    """Materialise a network made from templates, attach them again: the same scalers."""
    model, known = random_wave(name), architecture_of(component(name))
    before = {k: t.detach().clone() for k, t in wave.state(model, known).items()}
    x = some_inputs(name)
    y = model.eval()(x)
    templates = {k: t.detach() for k, t in wave.templates_of(model, known).items()}
    wave.materialise(model)
    assert model.state_dict().keys() == network(name).state_dict().keys()
    assert not any(isinstance(m, wave.TemplatedLinear) for m in model.modules())
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    wave.attach(model, known, templates)
    after = wave.state(model, known)
    for key, tensor in before.items():
        torch.testing.assert_close(after[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TEMPLATED)
def test_templates_are_shared_saved_once_and_loaded(name: str) -> None:
    model, known = random_wave(name), architecture_of(component(name))
    tensors = wave.state(model, known)
    unique = {id(p) for p in model.parameters()}
    assert len(list(model.parameters())) == len(unique)
    assert {id(t) for t in tensors.values() if isinstance(t, nn.Parameter)} == unique
    assert not any("parametrizations" in key for key in tensors)
    other = random_wave(name)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    wave.load(other, known, tensors)
    x = some_inputs(name)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))


def test_other_parametrisations_are_no_templates() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(4, 4)), spectral_norm(nn.Linear(4, 4)))
    assert wave.made_of(model) == []
    assert wave.shell_of(model).keys() == model.state_dict().keys()
    wave.materialise(model)
    assert isinstance(model[1].parametrizations.weight[0], nn.Module)
    other, known = random_wave("mlp.mlp"), architecture_of(component("mlp.mlp"))
    weight_norm(other.head)
    tensors = {name: t.detach() + 1 for name, t in wave.state(other, known).items()}
    assert {f"head.parametrizations.weight.original{i}" for i in (0, 1)} <= tensors.keys()
    wave.load(other, known, tensors)
    for name, tensor in wave.state(other, known).items():
        assert torch.equal(tensor, tensors[name])


def test_functional_call_leaves_the_sharing_alone() -> None:
    model, known = random_wave("mlp.mlp"), architecture_of(component("mlp.mlp"))
    x = torch.randn(2, *IMAGE)
    before = model(x)
    changed = {k: p + 1 for k, p in model.named_parameters()}
    assert not torch.allclose(functional_call(model, changed, (x,)), before)
    assert torch.equal(model(x), before)
    assert len(wave.templates_of(model, known)) == 1
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), before)
    layers = [m.templates for m in twin.modules() if isinstance(m, wave.Kronecker)]
    assert len({id(t) for t in layers}) == 1


def test_the_number_of_scalers_is_n_mn_over_pq() -> None:
    model, known = random_wave("vit.vit", width=0.5), architecture_of(component("vit.vit"))
    shapes = wave.template_shapes(
        [Outline.of(network("vit.vit", width=w), known) for w in (0.25, 0.5)], known
    )
    assert shapes == {
        "attn.qkv": (48, 48),
        "attn.proj": (48, 48),
        "mlp.fc1": (192, 48),
        "mlp.fc2": (48, 192),
    }
    draw = torch.Generator().manual_seed(0)
    wave.materialise(model)
    wave.attach(model, known, wave.random_templates(model, known, shapes, 5, draw))
    # Width 96, three blocks: qkv 288x96, proj 96x96 and both fc 384x96.
    per_block = 5 * (288 * 96 + 96 * 96) // 48**2 + 2 * 5 * (384 * 96) // (192 * 48)
    assert sum(s.numel() for s in wave.scalers_of(model).values()) == 3 * per_block


def test_templates_never_cut_through_a_head_or_a_flattened_channel() -> None:
    known = architecture_of(component("cnn.cnn"))
    family = [outline(component("cnn.cnn", width=w), IMAGE, CLASSES) for w in (0.5, 0.75)]
    # Channels 8, 16 and 12, 24; the dense layer reads 16 or 24 channels of 64 pixels.
    assert wave.template_shapes(family, known) == {"conv": (8, 4, 5, 5), "dense": (32, 8 * 64)}
    heads = [
        Outline.of(network("vit.vit", width=0.25, heads=h), architecture_of(component("vit.vit")))
        for h in (1, 2)
    ]
    with pytest.raises(ValueError, match=r"attn.qkv: units \(attention heads.* sizes: 24, 48"):
        wave.template_shapes(heads, architecture_of(component("vit.vit")))


def test_frozen_templates_get_no_gradient_and_scalers_do() -> None:
    model, known = random_wave("mlp.mlp"), architecture_of(component("mlp.mlp"))
    templates, scalers = wave.templates_of(model, known), wave.scalers_of(model)
    for t in templates.values():
        t.requires_grad_(False)
    before = {k: t.clone() for k, t in templates.items()}
    optimizer = torch.optim.SGD(scalers.values(), 0.1)
    model(torch.randn(4, *IMAGE)).square().mean().backward()
    optimizer.step()
    assert all(t.grad is None for t in templates.values())
    assert all(torch.equal(t, before[k]) for k, t in templates.items())
    assert all(s.grad is not None and s.grad.abs().sum() > 0 for s in scalers.values())


def test_the_gradient_of_a_shared_template_is_the_sum_over_its_layers() -> None:
    """∂/∂T of two layers with the same T is the sum of those with a T of their own."""
    s, t = torch.randn(2, 3, 2, 2), torch.randn(3, 4, 4)
    x = torch.randn(5, 8)
    shared = t.clone().requires_grad_()
    y = x @ weight_of(s[0], shared).T @ weight_of(s[1], shared).T
    y.square().sum().backward()
    own = [t.clone().requires_grad_() for _ in range(2)]
    y = x @ weight_of(s[0], own[0]).T @ weight_of(s[1], own[1]).T
    y.square().sum().backward()
    torch.testing.assert_close(shared.grad, own[0].grad + own[1].grad)


def test_random_scalers_give_the_variance_that_is_asked_for() -> None:
    """Var(W) = N·Var(S)·E[T²], here over 64·64·9 entries from 256·8 scalers."""
    layer = nn.ModuleDict({"l": nn.Linear(768, 768)})
    draw = torch.Generator().manual_seed(0)
    wave.attach(layer, TABLE, {"all": 3.0 * torch.randn(8, 48, 48, generator=draw)})
    wave.random_scalers(layer, {"l": 0.04}, draw)
    assert layer["l"].weight.var().item() == pytest.approx(0.04, rel=0.1)


def test_templates_start_as_large_as_a_standard_network_s_weights() -> None:
    model, known = network("vit.vit", width=1.0), architecture_of(component("vit.vit"))
    shapes = wave.template_shapes([Outline.of(model, known)], known)
    made = wave.random_templates(model, known, shapes, 2, torch.Generator().manual_seed(0))
    assert made.keys() == known.groups.keys()
    for group, templates in made.items():
        some = next(t for k, t in model.state_dict().items() if known.group(k) == group)
        assert templates.std().item() == pytest.approx(some.std().item(), rel=0.05)


def test_what_does_not_fit_is_refused_and_leaves_the_network_as_it_was() -> None:
    model, known = network("mlp.mlp"), architecture_of(component("mlp.mlp"))
    with pytest.raises(
        ValueError, match=r"hidden1: a weight of 100x100 is not made of whole .*7x7"
    ):
        wave.attach(model, known, {"hidden": torch.randn(2, 7, 7)})
    with pytest.raises(ValueError, match="there are no templates for hidden"):
        wave.attach(model, known, {})
    assert model.state_dict().keys() == network("mlp.mlp").state_dict().keys()
    templated = random_wave("mlp.mlp")
    before = {k: t.clone() for k, t in wave.state(templated, known).items()}
    wrong = {k: t for k, t in before.items() if not k.startswith("scalers/hidden1")}
    with pytest.raises(ValueError, match="scalers/hidden1 is missing"):
        wave.load(templated, known, wrong)
    with pytest.raises(ValueError, match=r"head.bias is \(3,\), not \(7,\)"):
        wave.load(templated, known, {**before, "head.bias": torch.ones(3)})
    assert all(torch.equal(t, before[k]) for k, t in wave.state(templated, known).items())


def test_a_network_too_shallow_for_a_group_needs_none_of_its_templates() -> None:
    known = architecture_of(component("mlp.mlp"))
    shallow = build_model(component("mlp.mlp", depth=1), IMAGE, 7, seed=0)
    with pytest.raises(ValueError, match="no weight that templates could make"):
        wave.template_shapes([Outline.of(shallow, known)], known)


def test_the_program_in_the_documentation_runs() -> None:
    text = (ROOT / "docs" / "learngene.md").read_text(encoding="utf-8")
    program = text.partition("```python\n")[2].partition("```")[0]
    assert "wave.materialise" in program
    subprocess.run([sys.executable, "-"], input=program, text=True, check=True, timeout=600)
