"""Tensors that are easily forgotten in every merge operator: empty, scalar, integer, constant."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from fedwsa.merge.average import average
from fedwsa.merge.fisher import fisher
from fedwsa.merge.permutation import permutation, permutation_wsa
from fedwsa.merge.range import common_range
from fedwsa.merge.stages import stages
from fedwsa.merge.task_arithmetic import task_arithmetic
from fedwsa.merge.ties import ties
from fedwsa.merge.ugm import ugm
from fedwsa.merge.wsa import wsa
from fedwsa.models.architecture import Units
from fedwsa.scope.rescale import WeightRange, rescale_gaussian, rescale_range
from fedwsa.scope.weight_scope import WeightScope, scoped_layers


def model(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(4, 3, generator=random),
        "rows": torch.zeros(0, 3),
        "columns": torch.zeros(4, 0),
        "vector": torch.zeros(0),
        "scalar": torch.randn((), generator=random),
        "constant": torch.full((3, 2), 1000.0),
        "half": torch.randn(2, 2, generator=random).half(),
        "integers": torch.tensor([3, 4]),
        "flag": torch.tensor(True),
        "byte": torch.tensor([250], dtype=torch.uint8),
        "no_integers": torch.zeros(0, dtype=torch.int64),
    }


def floating(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: t.float().abs() for k, t in state.items() if t.is_floating_point()}


FISHERS = [floating(model(5)), floating(model(6))]
UNITS = Units({"w": {0: "a"}, "rows": {0: "b"}, "columns": {0: "a"}, "vector": {0: "b"}})
ALONE = {
    "average": average,
    "wsa": wsa,
    "range": common_range,
    "union": partial(common_range, rule="union"),
    "percentile": partial(common_range, percentile=10.0),
    "stages": stages,
    "fisher": partial(fisher, fishers=FISHERS),
    "permutation": partial(permutation, permutations=UNITS),
    "permutation_wsa": partial(permutation_wsa, permutations=UNITS),
}
FROM_BASE = {
    "task_arithmetic": partial(task_arithmetic, scale=0.5),
    "ties": partial(ties, density=1.0),
    "ties trimmed": partial(ties, density=0.3),
    "ugm": partial(ugm, fishers=FISHERS, scale=0.5),
}
OPERATORS = {**ALONE, **{k: partial(o, base=model(0)) for k, o in FROM_BASE.items()}}


@pytest.mark.parametrize("name", OPERATORS)
def test_odd_tensors_come_back_in_their_form_with_finite_entries(name: str) -> None:
    one, other = model(0), model(1)
    found = OPERATORS[name]([one, other])
    for key, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (one[key].shape, one[key].dtype)
        assert tensor.float().isfinite().all()
    for key in ("integers", "flag", "byte"):
        assert torch.equal(found[key], one[key])
    torch.testing.assert_close(found["constant"], one["constant"])


@pytest.mark.parametrize("name", OPERATORS)
def test_identical_odd_models_merge_to_themselves(name: str) -> None:
    for key, tensor in OPERATORS[name]([model(0), model(0)]).items():
        torch.testing.assert_close(tensor, model(0)[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("keys", [["rows", "vector"], ["integers"], ["scalar"]])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_ties_of_a_model_with_hardly_an_entry(keys: list[str], density: float) -> None:
    one, base = ({k: model(s)[k] for k in keys} for s in (0, 1))
    found = ties([one], base=base, density=density)
    for key in keys:  # the largest of one entry stays, whatever the density
        torch.testing.assert_close(found[key], one[key])


def test_complex_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="w: complex weights cannot be merged"):
        average([{"w": torch.ones(2, dtype=torch.complex64)}] * 2)


def kept(change: Tensor, density: float, parts: int = 1) -> list[int]:
    """Places of the entries of a difference that TIES leaves."""
    base = {str(i): torch.zeros_like(c) for i, c in enumerate(change.chunk(parts))}
    state = {str(i): c for i, c in enumerate(change.chunk(parts))}
    # Names in another order than the base's: it is the base's that counts.
    found = ties([dict(reversed(state.items()))], base=base, density=density)
    return torch.cat([found[k] for k in base]).nonzero().flatten().tolist()


@pytest.mark.parametrize("density", [0.01, 0.1, 0.2, 0.25, 0.3, 0.5, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("parts", [1, 5])
def test_ties_keeps_its_density_of_equal_entries_the_first_ones(density: float, parts: int) -> None:
    count = {0.01: 1, 0.1: 3, 0.2: 6, 0.25: 8, 0.3: 9, 0.5: 15, 0.7: 21, 0.99: 30, 1.0: 30}
    assert kept(torch.ones(30), density, parts) == list(range(count[density]))
    signs = torch.ones(30)
    signs[::2] = -1
    assert kept(signs, density, parts) == list(range(count[density]))


def test_ties_takes_the_larger_ones_before_the_equal_ones() -> None:
    change = torch.ones(10)
    change[[3, 8]] = torch.tensor([2.0, -5.0])
    assert kept(change, 0.4, 2) == [0, 1, 3, 8]
    assert kept(change, 0.1) == [8]
    assert kept(torch.tensor([0.0, 0.0, 1.0, 0.0]), 0.5) == [2]  # zeros that stay are zeros


def test_ties_counts_equal_entries_over_pieces() -> None:
    """More entries than are looked at together."""
    assert kept(torch.ones(3 * 2**18), 0.5, 1) == list(range(3 * 2**17))


def test_empty_layers_have_no_scope_and_rescaling_leaves_them() -> None:
    state = model(0)
    assert scoped_layers(state) == ["w", "constant", "half"]
    with pytest.raises(ValueError, match="no weight tensor matches layers='rows'"):
        WeightScope.measure(state, "rows")
    scope = WeightScope.of(["rows", "w"], [0.0, 2.0], [1.0, 9.0])
    moved = rescale_gaussian(state, scope)
    assert torch.equal(moved["rows"], state["rows"])
    assert float(moved["w"].std(correction=0)) == pytest.approx(3.0, rel=1e-5)
    ends = WeightRange(("rows", "w"), torch.tensor([0.0, -2.0]), torch.tensor([1.0, 4.0]))
    for percentile in (0.0, 10.0):
        ranged = rescale_range(state, ends, percentile)
        assert torch.equal(ranged["rows"], state["rows"])
        assert not math.isnan(float(ranged["w"].sum()))
    assert float(rescale_range(state, ends)["w"].amax()) == pytest.approx(4.0)
    nothing = WeightScope.of([], [], [])
    assert torch.equal(rescale_gaussian(state, nothing)["w"], state["w"])
