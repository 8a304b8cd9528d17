"""Operators that need no data: what they must give by hand, and what must not change it."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedwsa.config.component import check_arguments, locate
from fedwsa.config.places import options
from fedwsa.merge import Operator, needs
from fedwsa.merge.average import average
from fedwsa.merge.range import common_range
from fedwsa.merge.stages import stages
from fedwsa.merge.states import require_alike
from fedwsa.merge.task_arithmetic import task_arithmetic
from fedwsa.merge.ties import ties
from fedwsa.merge.wsa import wsa
from fedwsa.scope.rescale import WeightRange
from fedwsa.scope.weight_scope import WeightScope

DATA_FREE: dict[str, Operator] = {
    "average": average,
    "wsa": wsa,
    "range": common_range,
    "percentile": partial(common_range, percentile=2.0),
    "union": partial(common_range, rule="union"),
    "stages": stages,
}


def model(seed: int, spread: float = 1.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (spread * torch.randn(shape, generator=random)).to(dtype)

    return {
        "conv.weight": draw(4, 3, 5, 5),
        "conv.bias": draw(4),
        "norm.weight": draw(4),
        "norm.running_mean": draw(4),
        "norm.running_var": draw(4).abs(),
        "norm.num_batches_tracked": torch.tensor(7 + seed),
        "head.weight": draw(10, 36) + 0.1,
    }


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], **how: float) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        torch.testing.assert_close(one[name], other[name], **how)


CLOSE = {"rtol": 1e-6, "atol": 1e-7}


@pytest.mark.parametrize("name", DATA_FREE)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_identical_models_merge_to_themselves(name: str, count: int) -> None:
    one = model(0)
    assert_close(DATA_FREE[name]([model(0)] * count), one, **CLOSE)
    weights = list(range(1, count + 1))
    assert_close(DATA_FREE[name]([model(0)] * count, weights=weights), one, **CLOSE)
    if name == "average":  # to the bit
        found = average([model(0)] * count, weights=weights)
        assert all(torch.equal(found[k], one[k]) for k in one)


@pytest.mark.parametrize("name", [n for n in DATA_FREE if n != "stages"])
def test_the_order_does_not_matter(name: str) -> None:
    models = [model(k, spread, torch.float64) for k, spread in enumerate((1.0, 2.0, 0.5))]
    weights = [3.0, 1.0, 2.0]
    expected = DATA_FREE[name](models, weights=weights)
    for order in itertools.permutations(range(3)):
        found = DATA_FREE[name]([models[i] for i in order], weights=[weights[i] for i in order])
        del found["norm.num_batches_tracked"]  # that of the first model
        assert_close(found, {k: expected[k] for k in found}, rtol=1e-12, atol=1e-14)


def test_the_average_by_hand() -> None:
    found = average([{"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 4.0])}])
    assert found["w"].tolist() == [2.0, 1.0]
    weighted = average(
        [{"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 4.0])}], weights=[3, 1]
    )
    assert weighted["w"].tolist() == [1.5, -0.5]


def test_wsa_brings_the_layers_to_the_fused_scope_before_the_average() -> None:
    """μ = (−1, 3), σ = (2, 1): fused by moments μ̃ = 1, σ̃² = (4 + 1 + 1 + 9)/2 − 1 = 6.5."""
    one, two = torch.tensor([[-3.0, 1.0]]), torch.tensor([[4.0, 2.0]])
    found = wsa([{"w": one, "b": torch.tensor([5.0])}, {"w": two, "b": torch.tensor([7.0])}])
    # w' = 1 + √6.5·(∓1, ±1): the first goes down then up, the second up then down.
    assert found["w"].tolist() == [pytest.approx([1.0, 1.0])]
    assert found["b"].tolist() == [6.0]
    same = wsa([{"w": one}, {"w": torch.tensor([[2.0, 4.0]])}])
    assert same["w"].tolist() == [pytest.approx([1 - math.sqrt(6.5), 1 + math.sqrt(6.5)])]


def test_a_layer_that_is_not_chosen_is_only_averaged() -> None:
    models = [model(0), model(1, 3.0)]
    found = wsa(models, layers="^conv")
    assert torch.equal(found["head.weight"], average(models)["head.weight"])
    assert not torch.allclose(found["conv.weight"], average(models)["conv.weight"])
    with pytest.raises(ValueError, match="no weight tensor matches"):
        wsa(models, layers="^nothing")


def test_scaled_copies_merge_to_the_shape_they_share() -> None:
    """2w + 1 and w/2 − 1 are one layer in other scopes: aligned, they are equal."""
    weight = model(0)["head.weight"].double()
    copies = [{"w": 2 * weight + 1}, {"w": weight / 2 - 1}]
    target = WeightScope.fuse([WeightScope.measure(c) for c in copies])
    found = wsa(copies)
    scope = WeightScope.measure(found)
    torch.testing.assert_close(scope.mean, target.mean)
    torch.testing.assert_close(scope.variance, target.variance)
    common = WeightRange.measure(common_range(copies))
    expected = WeightRange.fuse([WeightRange.measure(c) for c in copies])
    torch.testing.assert_close(common.low, expected.low)
    torch.testing.assert_close(common.high, expected.high)
    for merged in (found["w"], common_range(copies)["w"]):
        together = np.corrcoef(merged.flatten(), weight.flatten())[0, 1]
        assert together == pytest.approx(1.0, abs=1e-9)


def test_one_stage_is_wsa_and_the_last_target_is_that_of_all_at_once() -> None:
    models, weights = [model(k, 1.0 + k, torch.float64) for k in range(4)], [1, 2, 3, 4]
    assert_close(stages(models, weights=weights, sizes=[4]), wsa(models, weights=weights))
    # Copies of one layer in other scopes keep the scope that each stage gives them.
    weight = models[0]["head.weight"]
    copies = [{"w": (1.0 + k) * weight + k} for k in range(4)]
    target = WeightScope.fuse([WeightScope.measure(c) for c in copies], weights)
    for sizes in (None, [2, 2], [1, 3], [3, 1]):
        scope = WeightScope.measure(stages(copies, weights=weights, sizes=sizes))
        torch.testing.assert_close(scope.mean, target.mean)
        torch.testing.assert_close(scope.variance, target.variance)
    with pytest.raises(ValueError, match=r"stages of \[2, 1\] models are not the 4"):
        stages(models, sizes=[2, 1])


def test_a_stage_restores_the_variance_that_the_average_before_has_lost() -> None:
    """Three independent layers: averaging two halves the variance, and the third finds it so."""
    models = [{"w": model(k)["head.weight"].double()} for k in range(3)]
    target = WeightScope.fuse([WeightScope.measure(m) for m in models])
    first = WeightScope.fuse([WeightScope.measure(m) for m in models[:2]])
    pair = wsa(models[:2])
    lost = WeightScope.measure(pair).variance / first.variance
    assert float(lost) == pytest.approx(0.5, abs=0.1)
    gain = (target.variance / WeightScope.measure(pair).variance).sqrt()
    moved = target.mean + gain * (pair["w"] - WeightScope.measure(pair).mean)
    last = WeightScope.measure(models[2])
    arrived = target.mean + (target.variance / last.variance).sqrt() * (models[2]["w"] - last.mean)
    torch.testing.assert_close(stages(models)["w"], (2 * moved + arrived) / 3)


def test_task_arithmetic_by_hand_and_its_limit_the_average() -> None:
    base = {"w": torch.tensor([1.0, 1.0])}
    models = [{"w": torch.tensor([2.0, 1.0])}, {"w": torch.tensor([1.0, -1.0])}]
    assert task_arithmetic(models, base=base)["w"].tolist() == [2.0, -1.0]
    assert task_arithmetic(models, base=base, scale=0.5)["w"].tolist() == [1.5, 0.0]
    assert task_arithmetic(models, base=base, weights=[3, 1])["w"].tolist() == [2.5, 0.0]
    many = [model(k) for k in range(3)]
    assert_close(
        task_arithmetic(many, base=model(9), weights=[1, 2, 3], scale=1 / 3),
        average(many, weights=[1, 2, 3]),
        rtol=1e-5,
        atol=1e-6,
    )


def test_ties_by_hand() -> None:
    """Half of four entries stay; signs are elected by the sum; only those that agree count."""
    base = {"w": torch.zeros(4)}
    one = {"w": torch.tensor([4.0, 1.0, -2.0, 0.5])}  # 4 and −2 stay
    two = {"w": torch.tensor([-1.0, 0.1, 3.0, 2.0])}  # 3 and 2 stay
    found = ties([one, two], base=base, density=0.5)
    assert found["w"].tolist() == [4.0, 0.0, 3.0, 2.0]
    whole = ties([one, two], base=base, density=1.0)
    # 4 against −1, 1 and 0.1, −2 against 3, 0.5 and 2
    torch.testing.assert_close(whole["w"], torch.tensor([4.0, 0.55, 3.0, 1.25]))
    shifted = ties(
        [{"w": m["w"] + 7} for m in (one, two)], base={"w": base["w"] + 7}, density=0.5, scale=0.5
    )
    assert shifted["w"].tolist() == [9.0, 7.0, 8.5, 8.0]


@pytest.mark.parametrize(
    ("changes", "weights", "merged"),
    [
        ((-3.0, 1.0, 2.0), (1, 1, 1), 0.0),
        ((1.0, 1.0, -1.0), (1, 2, 3), 0.0),
        ((2.0, -1.0, 1.0), (0.1, 0.3, 0.1), 0.0),  # 0.2 + 0.1 - 0.3 is not 0 in binary numbers
        ((-3.0, -2.0, -1.0, 3.0, 3.0), (1, 1, 1, 1, 1), 0.0),
        ((-3.0, 1.0, 2.0 + 2**-20), (1, 1, 1), (3 + 2**-20) / 2),  # small is not cancelled
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_elects_nothing_where_changes_cancel_in_any_order(
    changes, weights, merged, dtype
) -> None:
    base = {"w": torch.zeros(1, dtype=dtype)}
    for order in itertools.permutations(range(len(changes))):
        models = [{"w": torch.tensor([changes[k]], dtype=dtype)} for k in order]
        found = ties(models, base=base, density=1.0, weights=[weights[k] for k in order])
        assert float(found["w"]) == pytest.approx(merged)


def test_ties_trims_over_the_whole_model() -> None:
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    found = ties([{"a": torch.tensor([5.0, 4.0]), "b": torch.tensor([1.0, 2.0])}], base=base,
                 density=0.5)  # fmt: skip
    assert found["a"].tolist() == [5.0, 4.0]
    assert found["b"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("operator", [task_arithmetic, partial(ties, density=1.0)])
def test_what_the_operators_with_a_base_promise_of_identical_models(operator: Operator) -> None:
    same, base = model(0), model(1)
    assert_close(operator([base] * 3, base=base), base)
    scale = 1 / 3 if operator is task_arithmetic else 1.0
    assert_close(operator([same] * 3, base=base, scale=scale), same, rtol=1e-5, atol=1e-6)
    other = operator([same] * 3, base=base, scale=2 * scale)
    assert not torch.allclose(other["head.weight"], same["head.weight"], atol=1e-3)


@pytest.mark.parametrize(
    "operator", [*DATA_FREE.values(), partial(task_arithmetic, base=model(9), scale=3.0)]
)
def test_statistics_are_averaged_and_counts_are_the_first_model_s(operator: Operator) -> None:
    found = operator([model(0), model(1)])
    assert found["norm.num_batches_tracked"] == 7
    for name in ("norm.running_mean", "norm.running_var"):
        mean = (model(0)[name].double() + model(1)[name].double()) / 2
        torch.testing.assert_close(found[name], mean.float())


@given(
    st.lists(st.floats(0, 1e6), min_size=2, max_size=4).filter(lambda w: sum(w) > 1e-3),
    st.sampled_from(sorted(DATA_FREE)),
)
@settings(max_examples=60)
def test_only_shares_count(weights: list[float], name: str) -> None:
    models = [model(k, 1.0 + k) for k in range(len(weights))]
    one = DATA_FREE[name](models, weights=weights)
    assert_close(one, DATA_FREE[name](models, weights=[8 * w for w in weights]))


@pytest.mark.parametrize("operator", [average, wsa, stages])
def test_a_model_of_weight_zero_changes_nothing(operator) -> None:
    models = [{"w": torch.randn(6, 4), "b": torch.randn(4)} for _ in range(2)]
    odd = {"w": torch.full((6, 4), 1e8), "b": torch.full((4,), 1e8)}
    without = operator(models, weights=[1, 3])
    for weights, cohort in (([0, 1, 3], [odd, *models]), ([1, 3, 0], [*models, odd])):
        for name, tensor in operator(cohort, weights=weights).items():
            assert torch.equal(tensor, without[name])


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [math.nan, 1], [1], [math.inf, 1]])
@pytest.mark.parametrize("operator", DATA_FREE.values())
def test_weights_that_cannot_be_are_refused(weights: list[float], operator: Operator) -> None:
    with pytest.raises(ValueError, match=r"weights must be|models need as many weights"):
        operator([model(0), model(1)], weights=weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("conv.bias"), "^model 2 lacks conv.bias, which model 1 has$"),
        (lambda m: m.update(new=m["conv.bias"]), "^model 2 has new, which model 1 lacks$"),
        (
            lambda m: m.update({"conv.bias": torch.zeros(5)}),
            r"^conv.bias: model 2 has the shape \(5,\), model 1 \(4,\)$",
        ),
        (
            lambda m: m.update({"conv.bias": m["conv.bias"].half()}),
            "^conv.bias: model 2 is float16, model 1 float32$",
        ),
        (
            lambda m: m["head.weight"].view(-1)[3].fill_(math.nan),
            "^head.weight: model 2 has NaN or infinite entries$",
        ),
        (
            lambda m: m["conv.bias"][1].fill_(-math.inf),
            "^conv.bias: model 2 has NaN or infinite entries$",
        ),
    ],
)
def test_models_that_do_not_fit_are_named_by_tensor(change, message: str) -> None:
    other = model(1)
    require_alike([model(0), other])
    change(other)
    with pytest.raises(ValueError, match=message):
        require_alike([model(0), other])


def test_inputs_are_not_changed() -> None:
    for operator in [*DATA_FREE.values(), partial(ties, base=model(9))]:
        models = [model(0), model(1)]
        operator(models)
        assert_close(models[0], model(0))
        assert_close(models[1], model(1))


def test_every_option_in_conf_fits_its_operator() -> None:
    for name, component in options("merge").items():
        operator = locate(component.target, "merge")
        check_arguments(
            operator, component.arguments, "merge", 1, {"weights", *needs(operator, "merge")}
        )
        assert name


@pytest.mark.parametrize("name", DATA_FREE)
def test_operators_refuse_models_that_are_not_alike(name: str) -> None:
    operator, one = DATA_FREE[name], model(0)
    for other, line in (
        ({**one, "head.weight": one["head.weight"][:1]}, r"head\.weight: model 2 has the shape"),
        ({**one, "head.weight": one["head.weight"].double()}, "model 2 is float64, model 1 float3"),
        ({k: t for k, t in one.items() if k != "conv.bias"}, r"model 2 lacks conv\.bias"),
        ({**one, "more": one["conv.bias"]}, "model 2 has more, which model 1 lacks"),
        (torch.nn.Linear(1, 1), "model 2 must be a state dict, not Linear"),
    ):
        with pytest.raises(ValueError, match=line):
            operator([one, other])
    with pytest.raises(ValueError, match="there is nothing to merge"):
        operator([])
