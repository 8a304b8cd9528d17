"""Networks of any size, and how their weights hang together."""

from __future__ import annotations

import pytest
import torch

from fedwsa.config.component import Component, ConfigError
from fedwsa.models import blank_inputs
from fedwsa.models.architecture import (
    Architecture,
    Axis,
    architecture_of,
    entries,
    first_units,
    place,
    repeated_units,
    rolled_by,
    selection,
    spread_units,
    take,
)
from tests.given.architecture import CLASSES, SMALL, component, network, shape


@pytest.mark.parametrize("name", SMALL)
def test_every_network_says_how_its_weights_hang_together(name: str) -> None:
    known, model = architecture_of(component(name)), network(name)
    assert model(blank_inputs(shape(name), 2)).shape[:2] == (2, CLASSES)
    state = model.state_dict()
    for group in known.groups:  # no group is empty, and only weights are in groups
        assert any(known.group(n) == group for n in state)
    assert all(state[n].dim() >= 2 for n in state if known.group(n))
    assert not any(known.group(n) for n in state if n.startswith(("head", "stem", "pos_embed")))


@pytest.mark.parametrize("name", SMALL)
def test_half_a_width_is_a_selection_of_a_width(name: str) -> None:
    wide = network(name, width=2 * SMALL[name]["width"])
    narrow, axes = network(name).state_dict(), architecture_of(component(name)).axes(wide)
    for key, tensor in wide.state_dict().items():
        chosen = selection(tensor.shape, narrow[key].shape, axes.get(key, {}), first_units)
        assert take(tensor, chosen).shape == narrow[key].shape


def test_a_deeper_network_has_the_blocks_of_a_shallower_one() -> None:
    deeper_ones = {"mlp.mlp": 5, "resnet.resnet": 20, "vgg.vgg": 16, "vit.vit": 6}
    deeper_ones |= {"text.char_lstm": 3, "text.char_transformer": 4}
    for name, deeper in deeper_ones.items():
        few, many = network(name), network(name, depth=deeper)
        shapes = {k: t.shape for k, t in many.state_dict().items()}
        for key, tensor in few.state_dict().items():
            assert shapes[key] == tensor.shape
        known = architecture_of(component(name))
        new = set(shapes) - set(few.state_dict())
        assert new
        assert all(known.block(key) for key in new)


def test_a_block_has_a_sequence_a_number_and_a_rest() -> None:
    known = architecture_of(component("resnet.resnet"))
    assert known.block("stage2.11.conv1.weight") == ("stage2.", 11, ".conv1.weight")
    assert known.block("stage2.0.conv1.weight") is None
    assert architecture_of(component("cnn.cnn")).block("conv1.weight") is None


def test_a_strangers_network_that_says_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not say how its weights hang together"):
        architecture_of(Component.of("torch.nn.Linear"))


def test_units_that_are_picked() -> None:
    assert first_units(5, 3).tolist() == [0, 1, 2]
    assert rolled_by(4)(5, 3).tolist() == [4, 0, 1]
    assert spread_units(9, 3).tolist() == [0, 3, 6]
    assert repeated_units(2, 5).tolist() == [0, 1, 0, 1, 0]


def test_heads_of_q_k_and_v_stay_whole() -> None:
    """Two heads of two units each, of which one is taken: rows 0, 1 of each of the three parts."""
    axis = Axis(parts=3, inner=2)
    assert axis.units(12) == 2
    assert entries(axis, 12, 6, first_units).tolist() == [0, 1, 4, 5, 8, 9]
    assert entries(axis, 12, 6, rolled_by(1)).tolist() == [2, 3, 6, 7, 10, 11]
    with pytest.raises(ValueError, match="no 3 parts of whole units of 2"):
        entries(axis, 12, 8, first_units)


def test_a_dimension_that_is_wanted_whole_keeps_its_order() -> None:
    """Image channels and classes are the same at all sizes: a window must not roll them."""
    assert entries(Axis(), 10, 10, rolled_by(3)) is None


def test_placing_is_the_adjoint_of_taking() -> None:
    """⟨take(x), y⟩ = ⟨x, place(y)⟩ for all x, y: so what is taken returns where it was."""
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3)
    chosen = selection(x.shape, (3, 2, 3), {0: Axis(parts=3)}, rolled_by(1))
    taken = take(x, chosen)
    y = torch.randn_like(taken)
    back = torch.zeros_like(x)
    back[place(chosen, x.shape)] = y
    torch.testing.assert_close((taken * y).sum(), (x * back).sum())
    assert torch.equal(x[place(chosen, x.shape)], taken)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": 0.3}, r"width 0.3 gives 58 units, which are no heads of 24; take a multiple"),
        ({"heads": 5}, r"heads=5 does not divide 48 units \(width 0.25\)"),
        ({"patch": 7}, "patches of 7 pixels do not fill images of 32x32"),
    ],
)
def test_a_transformer_that_cannot_be_is_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        network("vit.vit", **changes)


def test_an_architecture_without_groups_or_blocks_says_so() -> None:
    assert Architecture().group("weight") is None
    assert Architecture().block("blocks.0.weight") is None
