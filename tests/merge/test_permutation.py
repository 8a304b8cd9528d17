"""Permutation alignment: units that change places, and weights that tell where they belong."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.merge.files import ModelFile
from experiments.merge.methods import Ingredients, merge, method_of
from fedwsa import seeding
from fedwsa.config.component import Component, ConfigError
from fedwsa.data.sources import digits
from fedwsa.merge.permutation import align, match, permutation, permutation_wsa, permuted
from fedwsa.models import build_model
from fedwsa.models.architecture import Axis, Units, units_of
from fedwsa.models.files import save_network
from fedwsa.models.inputs import ImageShape, SeriesShape
from fedwsa.scope.weight_scope import WeightScope

IMAGE, CLASSES = ImageShape(3, 32, 32), 7
CASES = {
    "mlp": {"_target_": "fedwsa.models.mlp.mlp", "width": 0.2, "depth": 3},
    "linear": {"_target_": "fedwsa.models.mlp.mlp", "width": 0.2, "depth": 0},
    "cnn": {"_target_": "fedwsa.models.cnn.cnn", "width": 0.5, "depth": 2},
    "cnn1d": {"_target_": "fedwsa.models.cnn.cnn1d", "width": 0.5, "depth": 2},
    "cnn_pfl": {"_target_": "fedwsa.models.cnn.cnn_pfl", "width": 0.5, "depth": 2},
    **{
        f"{kind} {norm}": {
            "_target_": f"fedwsa.models.{kind}.{kind}",
            "width": width,
            "depth": depth,
            "norm": norm,
        }
        for (kind, width, depth), norm in itertools.product(
            [("vgg", 0.25, 11), ("resnet", 1.0, 14)], ["none", "group", "batch", "static"]
        )
    },
}
every_network = pytest.mark.parametrize("case", CASES)


def component(case: str) -> Component:
    return Component.model_validate(CASES[case])


def shape(case: str) -> tuple[int, ...]:
    return SeriesShape(2, 32) if case == "cnn1d" else IMAGE


def network(case: str, seed: int = 0) -> nn.Module:
    """With gains, biases and running statistics that differ from unit to unit."""
    model = build_model(component(case), shape(case), CLASSES, seed).eval()
    random = seeding.generator(seed, "statistics")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm | nn.GroupNorm):
                module.weight += 0.2 * torch.randn(module.weight.shape, generator=random)
                module.bias += 0.2 * torch.randn(module.bias.shape, generator=random)
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean += torch.randn(module.running_mean.shape, generator=random)
                module.running_var *= 0.5 + torch.rand(module.running_var.shape, generator=random)
    return model


def units(case: str) -> Units:
    return units_of(component(case), shape(case), CLASSES)


def answers(model: nn.Module, state: Mapping[str, Tensor]) -> Tensor:
    shape = SeriesShape(2, 32) if any(isinstance(m, nn.Conv1d) for m in model.modules()) else IMAGE
    images = torch.randn(5, *shape, generator=seeding.generator(0, "images"))
    model.load_state_dict(dict(state))
    with torch.no_grad():
        return model.double()(images.double())


def shuffled(state: Mapping[str, Tensor], known: Units, seed: int = 0) -> dict[str, Tensor]:
    """Units at random places; those of a GroupNorm in blocks: a random order of random orders."""
    random, places = seeding.generator(seed, "places"), {}
    for group in known.names():
        name, dimension = known.members(group)[0]
        count = known.axis(name, dimension).units(state[name].shape[dimension])
        blocks = torch.arange(count).view(known.blocks.get(group, 1), -1)
        blocks = blocks[torch.randperm(len(blocks), generator=random)]
        orders = [row[torch.randperm(len(row), generator=random)] for row in blocks]
        places[group] = torch.cat(orders)
    return permuted(state, places, known)


@every_network
def test_units_that_change_places_keep_the_function(case: str) -> None:
    model, known = network(case), units(case)
    state = {k: t.clone() for k, t in model.state_dict().items()}
    other = shuffled(state, known)
    assert case == "linear" or any(not torch.equal(other[k], state[k]) for k in state)
    torch.testing.assert_close(answers(model, other), answers(model, state), rtol=1e-8, atol=1e-10)


@every_network
def test_every_hidden_unit_of_a_network_may_change_its_place(case: str) -> None:
    known, state = units(case), network(case).state_dict()
    for name, tensor in state.items():
        if tensor.dim() == 0:  # BatchNorm's count of batches
            continue
        fixed = set(range(min(2, tensor.dim()))) - set(known.groups.get(name, {}))
        first = next(iter(state))
        allowed = {1} if name == first else {0} if name.startswith("head") else set()
        if case == "linear":
            allowed = {0, 1}
        assert fixed <= allowed, name


@every_network
def test_a_permuted_copy_is_put_back_exactly(case: str) -> None:
    state, known = network(case).state_dict(), units(case)
    back = align(shuffled(state, known), state, known)
    assert list(back) == list(state)
    for name in state:
        assert torch.equal(back[name], state[name]), name


@every_network
def test_a_permuted_copy_merges_back_to_the_original(case: str) -> None:
    state, known = network(case).state_dict(), units(case)
    copies = [state, shuffled(state, known, 1), shuffled(state, known, 2)]
    found = permutation(copies, weights=[1.0, 2.0, 0.5], permutations=known)
    for name in state:
        torch.testing.assert_close(found[name], state[name], rtol=1e-6, atol=1e-7)


@every_network
def test_aligning_keeps_the_function_of_a_network_of_its_own(case: str) -> None:
    model, other, known = network(case, 0), network(case, 1), units(case)
    state = {k: t.clone() for k, t in other.state_dict().items()}
    aligned = align(state, model.state_dict(), known)
    torch.testing.assert_close(
        answers(other, aligned), answers(other, state), rtol=1e-8, atol=1e-10
    )
    if case != "linear":
        assert any(not torch.equal(aligned[k], state[k]) for k in state)


@pytest.mark.parametrize("case", ["mlp", "vgg group", "resnet batch"])
def test_aligned_weights_are_more_alike_than_as_they_were(case: str) -> None:
    reference, state, known = (
        network(case, 0).state_dict(),
        network(case, 1).state_dict(),
        units(case),
    )

    def similarity(model: Mapping[str, Tensor]) -> float:
        return float(
            sum((model[n] * reference[n]).sum() for n in known.groups if "running" not in n)
        )

    assert similarity(align(state, reference, known)) > similarity(state) + 1.0


@pytest.mark.parametrize("operator", [permutation, permutation_wsa])
@pytest.mark.parametrize("case", ["mlp", "vgg batch", "resnet group"])
def test_identical_models_merge_to_themselves(operator, case: str) -> None:
    state, known = network(case).state_dict(), units(case)
    found = operator([state, state, state], permutations=known)
    for name in state:
        torch.testing.assert_close(found[name], state[name], rtol=1e-6, atol=1e-7)


def test_with_wsa_both_models_come_to_the_fused_scope_before_the_average() -> None:
    """A permuted copy of twice the size: σ of the fused scope is √((1 + 4)/2) of the first's."""
    state, known = network("mlp").state_dict(), units("mlp")
    double = {k: 2 * t for k, t in shuffled(state, known).items()}
    found = permutation_wsa([state, double], permutations=known)
    own, fused = WeightScope.measure(state), WeightScope.measure(found)
    # moments: σ̃² + μ̃² = ½(σ² + μ²) + ½(4σ² + 4μ²), μ̃ = 1.5μ
    expected = 2.5 * (own.variance + own.mean**2) - (1.5 * own.mean) ** 2
    torch.testing.assert_close(fused.variance, expected, rtol=1e-5, atol=0)


def test_the_best_order_of_two_units_is_found_by_hand() -> None:
    """Unit 0 of the model is unit 1 of the reference by its input and by its output weights."""
    reference = {"a.weight": torch.eye(2), "b.weight": torch.tensor([[1.0, 3.0]])}
    model = {"a.weight": torch.eye(2).flip(0), "b.weight": torch.tensor([[3.0, 1.0]])}
    known = Units({"a.weight": {0: "a"}, "b.weight": {1: "a"}})
    assert match(model, reference, known)["a"].tolist() == [1, 0]


def test_flattened_channels_move_as_a_whole() -> None:
    known = Units({"w": {1: "a"}}, {"w": {1: Axis(inner=3)}})
    moved = permuted({"w": torch.arange(6.0)[None]}, {"a": torch.tensor([1, 0])}, known)
    assert moved["w"].tolist() == [[3, 4, 5, 0, 1, 2]]


def test_units_stay_with_those_that_share_their_block() -> None:
    """Best of all would be 0 ↔ 2, which would part 0 from 1; allowed is the exchange of halves,
    with units within them exchanged or not. By hand: the rows of reference and model."""
    reference = torch.tensor([[5.0], [1.0], [-4.0], [0.5]])
    model = {"w": reference[[2, 1, 0, 3]]}
    known = Units({"w": {0: "a"}}, blocks={"a": 2})
    order = match(model, {"w": reference}, known)["a"].tolist()
    allowed = [
        [*(2 * first + i for i in one), *(2 - 2 * first + i for i in two)]
        for first in (0, 1)
        for one in ([0, 1], [1, 0])
        for two in ([0, 1], [1, 0])
    ]
    assert order in allowed
    value = {tuple(o): float((reference * model["w"][o]).sum()) for o in allowed}
    assert value[tuple(order)] == max(value.values())


def test_the_seed_draws_the_order_and_nothing_else_does() -> None:
    known = units("cnn")
    states = [network("cnn", seed).state_dict() for seed in (0, 1)]
    one, again = (match(states[1], states[0], known, seed=3) for _ in range(2))
    assert all(torch.equal(one[group], again[group]) for group in known.names())


@pytest.mark.parametrize("name", ["vit.vit", "text.char_lstm", "text.char_transformer"])
def test_networks_that_do_not_say_their_units_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="does not say which units may change places") as error:
        units_of(Component.of(f"fedwsa.models.{name}"), IMAGE, CLASSES)
    assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named() -> None:
    state, known = network("mlp").state_dict(), units("mlp")
    without = {k: t for k, t in state.items() if k != "hidden1.weight"}
    with pytest.raises(ValueError, match=r"the model lacks hidden1\.weight"):
        permutation([state, without], permutations=known)


def test_a_tensor_with_a_group_on_two_sides_is_refused() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        Units({"w": {0: "a", 1: "a"}})


def test_the_command_reads_from_the_files_which_units_may_change_places(tmp_path: Path) -> None:
    data, mlp = digits().decode(), component("mlp")
    state = build_model(mlp, data.shape, data.classes, 0).state_dict()
    known = units_of(mlp, data.shape, data.classes)
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for file, tensors in zip(files, (state, shuffled(state, known)), strict=True):
        save_network(file, tensors, mlp, data)
    found = merge(method_of("permutation"), Ingredients([ModelFile(file) for file in files]))
    for name in state:
        torch.testing.assert_close(found[name], state[name], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_two_networks_of_the_size_of_resnet18_are_aligned_within_a_minute() -> None:
    big = Component.of("fedwsa.models.resnet.resnet", width=6.6, depth=20, norm="batch")
    states = [build_model(big, IMAGE, 10, seed).state_dict() for seed in (0, 1)]
    assert sum(t.numel() for t in states[0].values()) > 11_000_000
    begin = time.process_time()
    permutation(states, permutations=units_of(big, IMAGE, 10))
    assert time.process_time() - begin < 60
