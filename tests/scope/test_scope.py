"""The mathematics of weight scopes (arXiv 2408.12237), each statement with its derivation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedwsa.scope.moments import moments
from fedwsa.scope.rescale import WeightRange, rescale_gaussian, rescale_range
from fedwsa.scope.weight_scope import (
    WeightScope,
    add_kl_gradient_,
    kl_divergence,
    scoped_layers,
    spread,
    stability,
    variance_from,
)

numbers = st.floats(-3, 3, allow_nan=False)
positive = st.floats(0.01, 4)
FUSIONS = ("moments", "mean_variance", "mean_std")


def scope(*layers: tuple[float, float]) -> WeightScope:
    return WeightScope.of(
        [f"l{i}.weight" for i in range(len(layers))], [m for m, _ in layers], [v for _, v in layers]
    )


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def scopes_of(draw: st.DrawFn, layers: int) -> WeightScope:
    return scope(*[(draw(numbers), draw(positive)) for _ in range(layers)])


@st.composite
def weighted_scopes(draw: st.DrawFn) -> tuple[list[WeightScope], list[float]]:
    layers, clients = draw(st.integers(1, 3)), draw(st.integers(3, 5))
    return (
        [scopes_of(draw, layers) for _ in range(clients)],
        [draw(st.integers(1, 50)) for _ in range(clients)],
    )


# --- measuring -----------------------------------------------------------------------------


def test_moments_are_population_statistics() -> None:
    # Entries 1, 2, 3, 6: mean 3, deviations −2, −1, 0, 3, population variance 14/4 = 3.5.
    mean, variance = moments([torch.tensor([[1.0, 2.0], [3.0, 6.0]])])
    assert mean.tolist() == [3.0]
    assert variance.tolist() == pytest.approx([3.5], rel=1e-6)


def test_layers_with_a_scope_are_those_of_two_or_more_dimensions() -> None:
    net = small_net()
    assert scoped_layers(net.state_dict()) == ["0.weight", "3.weight"]
    assert WeightScope.measure(net, "^3").names == ("3.weight",)


def test_a_choice_of_layers_that_leaves_none_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"fc.*those .* are: 0\.weight, 3\.weight"):
        WeightScope.measure(small_net(), "fc")
    with pytest.raises(ValueError, match="not a regular expression"):
        WeightScope.measure(small_net(), "(")


def test_an_impossible_scope_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"negative variance\): l1\.weight"):
        scope((0.0, 1.0), (0.0, -1.0))
    net = small_net()
    net[3].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"3\.weight"):
        WeightScope.measure(net)
    with pytest.raises(ValueError, match="2 layers needs as many"):
        WeightScope.of(["a", "b"], [0.0], [1.0])


# --- KL ------------------------------------------------------------------------------------


@given(numbers, positive)
def test_kl_of_a_scope_to_itself_is_zero(mean: float, variance: float) -> None:
    assert scope((mean, variance)).kl(scope((mean, variance))).item() == pytest.approx(0, abs=1e-15)


def test_kl_of_the_standard_normal_to_twice_its_width() -> None:
    # ln(σ̃/σ) + (σ² + 0)/(2σ̃²) − ½ = ln 2 + 1/8 − 1/2 = ln 2 − 3/8.
    assert scope((0, 1)).kl(scope((0, 4))).item() == pytest.approx(math.log(2) - 3 / 8)


@given(numbers, positive, numbers, positive)
def test_kl_agrees_with_torch_distributions(m1: float, s1: float, m2: float, s2: float) -> None:
    expected = torch.distributions.kl_divergence(
        *(
            torch.distributions.Normal(*torch.tensor([m, s], dtype=torch.float64))
            for m, s in ((m1, s1), (m2, s2))
        )
    )
    ours = scope((m1, s1**2)).kl(scope((m2, s2**2)))
    torch.testing.assert_close(ours[0], expected, rtol=1e-9, atol=1e-9)


def test_the_floor_keeps_kl_finite_for_constant_layers() -> None:
    # σ = 0 counts as 0.1, the target is exact: the KL of equal Gaussians, zero.
    assert scope((0, 0)).kl(scope((0, 0.01)), floor=0.1).item() == pytest.approx(0)
    assert scope((0, 1)).kl(scope((0, 0)), floor=0.1).isfinite().all()


def test_scopes_of_other_layers_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"different layers: l0\.weight, other"):
        scope((0, 1)).kl(WeightScope.of(["other"], [0], [1]))


# --- gradient ------------------------------------------------------------------------------


def regulariser(
    weights: list[torch.Tensor], target: WeightScope, reduction: str, floor: float
) -> torch.Tensor:
    """λ·Σ KL with λ = 1, written for autograd (var by ``torch.var``): the reference."""
    total = torch.zeros((), dtype=torch.float64)
    for w, m, v in zip(weights, target.mean, target.variance, strict=True):
        kl = kl_divergence(w.mean(), w.var(correction=0), m, v, floor)
        total = total + (w.numel() if reduction == "entries" else 1) * kl
    return total


@pytest.mark.parametrize("reduction", ["layer", "entries"])
@pytest.mark.parametrize("floor", [1e-4, 0.5])
def test_closed_form_gradient_equals_autograd(reduction: str, floor: float) -> None:
    torch.manual_seed(0)
    # The second layer's σ ≈ 0.2 lies below the floor 0.5, the third's is zero.
    weights = [
        torch.randn(4, 3, 3, 3, dtype=torch.float64) + 0.3,
        0.2 * torch.randn(6, 5, dtype=torch.float64),
        torch.full((2, 2), 0.1, dtype=torch.float64),
    ]
    target = scope((0.1, 2.0), (-0.2, 0.05), (0.0, 0.3))
    leaves = [w.clone().requires_grad_() for w in weights]
    regulariser(leaves, target, reduction, floor).backward()
    gradients = [torch.ones_like(w) for w in weights]
    add_kl_gradient_(gradients, weights, target, 0.7, reduction=reduction, floor=floor)
    for ours, leaf in zip(gradients, leaves, strict=True):
        torch.testing.assert_close(ours, 1 + 0.7 * leaf.grad, rtol=1e-10, atol=1e-12)


def test_closed_form_gradient_equals_finite_differences() -> None:
    torch.manual_seed(1)
    w = torch.randn(3, 4, dtype=torch.float64)
    target = scope((0.5, 0.3))
    gradient = torch.zeros_like(w)
    add_kl_gradient_([gradient], [w], target, 1.0)
    for i in range(w.numel()):
        step = torch.zeros(12, dtype=torch.float64)
        step[i] = 1e-6
        up, down = (
            regulariser([w + sign * step.view(3, 4)], target, "layer", 1e-4) for sign in (1, -1)
        )
        assert ((up - down) / 2e-6).item() == pytest.approx(gradient.flatten()[i].item(), rel=1e-6)


def test_strength_zero_changes_no_bit() -> None:
    gradient = torch.randn(3, 3)
    before = gradient.clone()
    add_kl_gradient_([gradient], [torch.full((3, 3), math.nan)], scope((0, 1)), 0.0)
    assert torch.equal(gradient, before)


def test_the_gradient_vanishes_at_the_target() -> None:
    w = torch.randn(50, 40, dtype=torch.float64)
    gradient = torch.zeros_like(w)
    add_kl_gradient_([gradient], [w], WeightScope.measure({"l0.weight": w}), 100.0)
    assert gradient.abs().max() < 1e-12


def test_a_descent_on_the_regulariser_alone_keeps_the_standardised_layer() -> None:
    # The gradient is a·θ_i + b with the same a, b for the whole layer, so each step is an
    # affine map of the layer and (θ − μ)/σ never changes, while the scope reaches its target.
    torch.manual_seed(2)
    w = 0.3 * torch.randn(20, 30, dtype=torch.float64) - 0.4
    start = w.clone()
    target = scope((0.2, 0.25))
    for _ in range(400):
        gradient = torch.zeros_like(w)
        add_kl_gradient_([gradient], [w], target, 1.0, reduction="entries")
        w -= 0.05 * gradient
    standardised = [(x - x.mean()) / x.std(correction=0) for x in (start, w)]
    assert (standardised[0] * standardised[1]).mean().item() == pytest.approx(1.0, abs=1e-9)
    assert w.mean().item() == pytest.approx(0.2, abs=1e-6)
    assert w.var(correction=0).item() == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("reduction", ["layer", "entries"])
@pytest.mark.parametrize(("ratio", "settles"), [(0.8, True), (1.2, False)])
def test_descent_on_the_regulariser_is_stable_below_ratio_one(
    reduction: str, ratio: float, settles: bool
) -> None:
    # Near the target, a step along the standardised layer z multiplies the error in σ by
    # 1 − η·2λ/(nσ̃²) = 1 − 2·ratio: −0.6 shrinks it, −1.4 makes it grow.
    torch.manual_seed(3)
    w = 0.2 * torch.randn(10, 20, dtype=torch.float64)
    target = WeightScope.measure({"l0.weight": w})
    at_one = stability({"l0.weight": w}, target, 1.0, reduction, lr=1.0)["l0.weight"]
    w *= 1.001
    for _ in range(30):
        gradient = torch.zeros_like(w)
        add_kl_gradient_([gradient], [w], target, 1.0, reduction=reduction)
        w -= ratio / at_one * gradient
    error = abs(w.std(correction=0).item() / target.std.item() - 1)
    assert (error < 1e-4) == settles
    assert settles or error > 0.01


# --- fusion --------------------------------------------------------------------------------


def test_fusing_two_shifted_normals_by_moments() -> None:
    # N(0,1), N(2,1): μ̃ = 1; Σp(σ²+μ²) = ½·1 + ½·5 = 3; σ̃² = 3 − 1² = 2.
    fused = WeightScope.fuse([scope((0, 1)), scope((2, 1))])
    assert (fused.mean.item(), fused.variance.item()) == (1.0, 2.0)


@pytest.mark.parametrize(("fusion", "variance"), [("mean_variance", 5.0), ("mean_std", 4.0)])
def test_fusing_widths_one_and_three(fusion: str, variance: float) -> None:
    # σ = 1 and 3: the mean of variances is (1 + 9)/2 = 5, the squared mean of σ is 2² = 4.
    fused = WeightScope.fuse([scope((0, 1)), scope((0, 9))], fusion=fusion)
    assert fused.variance.item() == pytest.approx(variance)


@settings(deadline=None)
@given(weighted_scopes(), st.sampled_from(FUSIONS), st.randoms(use_true_random=False))
def test_fusion_is_associative_and_free_of_order(pair, fusion, random) -> None:
    scopes, weights = pair
    whole = WeightScope.fuse(scopes, weights, fusion)
    order = list(range(len(scopes)))
    random.shuffle(order)
    shuffled = WeightScope.fuse([scopes[i] for i in order], [weights[i] for i in order], fusion)
    parts = WeightScope.fuse(
        [WeightScope.fuse(scopes[:2], weights[:2], fusion), *scopes[2:]],
        [sum(weights[:2]), *weights[2:]],
        fusion,
    )
    for other in (shuffled, parts):
        torch.testing.assert_close(other.mean, whole.mean)
        torch.testing.assert_close(other.variance, whole.variance, rtol=1e-6, atol=1e-9)


@given(weighted_scopes(), st.floats(-0.2, 0.2), st.floats(0.8, 1.25))
def test_moments_minimise_the_weighted_kl(pair, shift: float, stretch: float) -> None:
    # d/dμ̃ and d/dσ̃² of Σ p_k KL(N_k‖Ñ) vanish at μ̃ = Σpμ, σ̃² = Σp(σ²+μ²) − μ̃².
    scopes, weights = pair
    best = WeightScope.fuse(scopes, weights)
    other = WeightScope(best.names, best.mean + shift, best.variance * stretch)

    def cost(target: WeightScope) -> float:
        return sum(w * s.kl(target).sum().item() for s, w in zip(scopes, weights, strict=True))

    assert cost(best) <= cost(other) + 1e-9


@given(numbers, positive, st.sampled_from(FUSIONS))
def test_spread_and_its_inverse(mean: float, variance: float, fusion: str) -> None:
    m, v = torch.tensor([mean]).double(), torch.tensor([variance]).double()
    torch.testing.assert_close(variance_from(m, spread(m, v, fusion), fusion), v)


def test_fusing_refuses_bad_weights_rules_and_layers() -> None:
    with pytest.raises(ValueError, match="positive, finite sum"):
        WeightScope.fuse([scope((0, 1))], [0.0])
    with pytest.raises(ValueError, match="as many weights"):
        WeightScope.fuse([scope((0, 1))], [1.0, 2.0])
    with pytest.raises(ValueError, match="moments, mean_variance, mean_std; got 'sum'"):
        WeightScope.fuse([scope((0, 1))], fusion="sum")
    with pytest.raises(ValueError, match="different layers"):
        WeightScope.fuse([scope((0, 1)), scope((0, 1), (0, 1))])
    with pytest.raises(ValueError, match="at least one"):
        WeightScope.fuse([])


# --- rescaling -----------------------------------------------------------------------------


def test_gaussian_rescaling_gives_the_target_scope_and_leaves_the_rest() -> None:
    state = small_net().state_dict()
    target = WeightScope.of(["0.weight", "3.weight"], [0.5, -1.0], [4.0, 0.01])
    moved = rescale_gaussian(state, target)
    reached = WeightScope.measure(moved)
    torch.testing.assert_close(reached.mean, target.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reached.variance, target.variance, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(moved[k], state[k]) for k in state if k not in target.names)
    assert torch.equal(state["0.weight"], small_net().state_dict()["0.weight"])


def test_gaussian_rescaling_of_a_constant_layer_only_shifts() -> None:
    moved = rescale_gaussian({"l0.weight": torch.full((2, 2), 3.0)}, scope((1.0, 0.5)))
    assert torch.equal(moved["l0.weight"], torch.ones(2, 2))


def test_range_rescaling_maps_the_ends() -> None:
    # [−1, 3] to [0, 1]: w' = (w + 1)/4.
    moved = rescale_range(
        {"w": torch.tensor([[-1.0, 3.0], [1.0, 0.0]])},
        WeightRange(("w",), torch.tensor([0.0]).double(), torch.tensor([1.0]).double()),
    )
    assert moved["w"].tolist() == [[0.0, 1.0], [0.5, 0.25]]


def test_range_rescaling_of_a_constant_layer_moves_it_to_the_middle() -> None:
    target = WeightRange(("w",), torch.tensor([0.0]).double(), torch.tensor([1.0]).double())
    assert rescale_range({"w": torch.full((2, 2), 7.0)}, target)["w"].unique().tolist() == [0.5]


def test_percentiles_are_not_ruled_by_outliers() -> None:
    # 0 … 100 and one outlier: of 102 values in order, the 1st and 99th percentiles have the
    # 0-based ranks round(1.01) = 1 and 101 − 1 = 100.
    w = {"w": torch.cat([torch.arange(101.0), torch.tensor([1e6])]).view(2, 51)}
    plain, robust = WeightRange.measure(w), WeightRange.measure(w, percentile=1.0)
    assert (plain.low.item(), plain.high.item()) == (0.0, 1e6)
    assert (robust.low.item(), robust.high.item()) == (1.0, 100.0)
    with pytest.raises(ValueError, match=r"\[0, 50\)"):
        WeightRange.measure(w, percentile=50)


def test_ranges_fuse_by_mean_and_by_union() -> None:
    a, b = (
        WeightRange(("w",), torch.tensor([lo]).double(), torch.tensor([hi]).double())
        for lo, hi in ((-1.0, 2.0), (-3.0, 1.0))
    )
    mean, union = WeightRange.fuse([a, b]), WeightRange.fuse([a, b], "union")
    assert (mean.low.item(), mean.high.item()) == (-2.0, 1.5)
    assert (union.low.item(), union.high.item()) == (-3.0, 2.0)


@pytest.mark.parametrize("clients", [1, 2, 3])
def test_rescaling_identical_models_to_their_common_scope_is_the_identity(clients: int) -> None:
    state = small_net().state_dict()
    fused = WeightScope.fuse([WeightScope.measure(state)] * clients)
    moved_ways = [rescale_gaussian(state, fused)]
    for percentile in (0.0, 5.0):
        common = WeightRange.fuse([WeightRange.measure(state, percentile=percentile)] * clients)
        moved_ways.append(rescale_range(state, common, percentile))
    for moved in moved_ways:
        for name in state:
            torch.testing.assert_close(moved[name], state[name], rtol=1e-6, atol=1e-7)


def test_offsets_and_half_precision_lose_no_digits() -> None:
    torch.manual_seed(0)
    noise = 0.01 * torch.randn(300, 300, dtype=torch.float64)
    weights = (100 + noise).float()  # to 2⁻¹⁸ = 4e-6: four hundredths of a percent of σ
    expected = weights.double().var(correction=0)
    scope = WeightScope.measure({"w": weights})
    torch.testing.assert_close(scope.variance[0], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(scope.mean[0], weights.double().mean(), rtol=1e-9, atol=0)
    # 262,144 ones are more than half precision can add up.
    ones = WeightScope.measure({"w": torch.ones(512, 512, dtype=torch.float16)})
    assert (ones.mean.item(), ones.variance.item()) == (1.0, 0.0)
    for kind in (torch.float16, torch.bfloat16):
        rounded = (0.05 * torch.randn(64, 64)).to(kind)
        mean, variance = moments([rounded])
        torch.testing.assert_close(mean[0], rounded.double().mean(), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(
            variance[0], rounded.double().var(correction=0), rtol=1e-4, atol=0
        )
