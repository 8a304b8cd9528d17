"""Networks within networks: early exits, and the parts that smaller sizes have."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from fedwsa.config.component import Component, ConfigError
from fedwsa.models import build_model
from fedwsa.models.architecture import architecture_of, first_units, selection, take
from fedwsa.models.exits import Exits, exited
from fedwsa.models.inputs import ImageShape
from fedwsa.models.nested import Nested

SHAPE = ImageShape(3, 16, 16)
NETWORKS = {
    "mlp": (Component.of("fedwsa.models.mlp.mlp", width=0.1, depth=3), 1),
    "cnn": (Component.of("fedwsa.models.cnn.cnn", width=0.5, depth=2), 1),
    "cnn_pfl": (Component.of("fedwsa.models.cnn.cnn_pfl", width=0.5, depth=2), 1),
    "resnet": (
        Component.of("fedwsa.models.resnet.resnet", width=0.5, depth=14, norm="group"),
        8,
    ),
    "vit": (
        Component.of(
            "fedwsa.models.vit.vit", width=0.25, depth=2, heads=None, patch=8, mlp_ratio=2.0
        ),
        1,
    ),
}


def made(component: Component, seed: int = 0) -> torch.nn.Module:
    return build_model(component, SHAPE, 5, seed)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exit_is_the_less_deep_network_by_the_same_weights(name: str) -> None:
    component, depth = NETWORKS[name]
    model, plain = made(exited(component, [depth])), made(component)
    own, theirs = model.state_dict(), plain.state_dict()
    # Its own tensors have their names and values, and nothing of the way has a second name.
    assert all(torch.equal(own[key], theirs[key]) for key in theirs)
    extra = own.keys() - theirs.keys()
    behind = architecture_of(component).last.strip(r"\.()").split("|")
    assert {key.split(".")[2] for key in extra} == set(behind)
    assert all(key.startswith("exits.0.") for key in extra)
    x = torch.randn(4, *SHAPE)
    model.eval(), plain.eval()
    assert torch.equal(model(x), plain(x))
    # Trained weights, loaded as a client loads them: the way sees them, as a network of its own.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter + 0.1 * torch.randn_like(parameter)
    less = made(component.replace(depth=depth)).eval()
    own = model.state_dict()
    state = {k: own.get(f"exits.0.{k}", own.get(k)) for k in less.state_dict()}
    less.load_state_dict(state)
    [early] = model.early(x)
    torch.testing.assert_close(early, less(x))
    [again] = deepcopy(model).early(x)
    assert torch.equal(again, early)


def test_the_loss_of_an_exit_reaches_the_blocks_on_its_way_alone() -> None:
    component, depth = NETWORKS["mlp"]
    model = made(exited(component, [depth]))
    model.early(torch.randn(4, *SHAPE))[0].sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    parts = ("weight", "bias")
    assert reached == {*(f"hidden0.{p}" for p in parts), *(f"exits.0.head.{p}" for p in parts)}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_nested_network_is_the_smaller_one_by_the_first_units(name: str) -> None:
    component, depth = NETWORKS[name]
    wide = component.arguments["width"]
    large, small = component, component.replace(width=wide / 2, depth=depth)
    if name in ("cnn", "cnn_pfl"):  # whose dense layer is another at another depth
        small = component.replace(width=wide / 2)
    if name == "vit":
        large, small = component.replace(width=0.5), component.replace(depth=depth)
    whole, part = made(large), made(small, seed=1).train()
    axes = architecture_of(large).axes(whole)
    nested = Nested(made(small), whole, axes)
    weights = dict(whole.named_parameters())
    chosen = {
        key: selection(weights[key].shape, p.shape, axes.get(key, {}), first_units)
        for key, p in part.named_parameters()
    }
    part.load_state_dict({key: take(weights[key].detach(), of) for key, of in chosen.items()})
    x = torch.randn(4, *SHAPE)
    torch.manual_seed(3)
    answer = nested(weights, x)
    torch.manual_seed(3)
    expected = part(x)
    torch.testing.assert_close(answer, expected)
    answer.square().sum().backward()
    expected.square().sum().backward()
    for key, own in part.named_parameters():
        gradient = weights[key].grad
        torch.testing.assert_close(take(gradient, chosen[key]), own.grad, rtol=1e-4, atol=1e-5)
        # What the smaller network has not, is not trained.
        assert gradient.count_nonzero() == take(gradient, chosen[key]).count_nonzero()


def test_a_recurrent_network_has_no_parts_that_torch_could_call() -> None:
    model = torch.nn.Sequential(torch.nn.LSTM(2, 2))
    with pytest.raises(ValueError, match="recurrent"):
        Nested(model, model, {})


def sizes(**depths: object) -> dict[str, Component]:
    component, _ = NETWORKS["mlp"]
    return {size: component.replace(depth=depth) for size, depth in depths.items()}


def test_exits_stand_at_the_depths_that_other_sizes_have() -> None:
    exits = Exits.of(sizes(S=1, M=2, N=2, L=4), SHAPE, 5, 0)
    assert [exits.on_the_way(size) for size in "SMNL"] == [[], [1], [1], [1, 2]]
    assert set(exits.arrays["L"]) == {
        f"exits.{k}.head.{part}" for k in (0, 1) for part in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("components", "message"),
    [
        (sizes(S=1, L=1), "mlp of depth=1 has one block"),
        (
            {"L": Component.of("fedwsa.models.resnet.resnet", width=1.0, depth=8, norm="group")},
            "resnet of depth=8 has one block",
        ),
        (
            {"L": Component.of("fedwsa.models.vgg.vgg8", width=1.0)},
            "sizes.L: early exits need the depth of each size, and vgg8 has none",
        ),
    ],
)
def test_networks_without_room_for_an_exit_are_refused(components, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Exits.of(components, SHAPE, 5, 0)
    assert "\n" not in str(caught.value)
