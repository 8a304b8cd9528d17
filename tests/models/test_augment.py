"""Weight augmentation: shadow weights are what was worked out by hand, plain ones stay plain."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.optim.swa_utils import update_bn

from fedwsa.models.augment import ShadowWeights, Transform, apply, choice, crop, kernels, translate
from fedwsa.models.batch_norm import reestimate

ALL: tuple[Transform, ...] = ("translate", "crop", "choice")
unit = st.floats(0, 1, exclude_max=True)
numbers = st.tuples(unit, unit, unit, unit, unit)
sides = st.integers(3, 7)
NINE = torch.tensor([[1.0, 2, 4], [8, 16, 32], [64, 128, 256]])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net() -> nn.Module:
    """Two kernels with shadows, of 5x5 and 3x3, and one without, 1x1; 6x6 images, 3 classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 5, padding=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
        nn.Flatten(),
        nn.Linear(72, 3),
    )


def batch() -> tuple[Tensor, Tensor]:
    random = seeded(1)
    return torch.randn(5, 2, 6, 6, generator=random), torch.randint(0, 3, (5,), generator=random)


def transformed(matrix: Tensor, plane: Tensor) -> Tensor:
    return apply(matrix, plane[None, None])[0, 0]


def test_a_shift_down_moves_rows_down_and_fills_with_zeros() -> None:
    # 0.3·3·(2·0.9 − 1) = 0.72, rounded 1 down; 0.3·3·(2·0.5 − 1) = 0 to the right.
    got = transformed(translate(3, 3, (0.9, 0.5)), NINE)
    assert got.tolist() == [[0, 0, 0], [1, 2, 4], [8, 16, 32]]


def test_a_shift_up_and_to_the_right() -> None:
    # 0.9·(2·0.1 − 1) = −0.72, rounded −1; 0.9·(2·0.8 − 1) = 0.54, rounded 1.
    got = transformed(translate(3, 3, (0.1, 0.8)), NINE)
    assert got.tolist() == [[0, 8, 16], [0, 64, 128], [0, 0, 0]]


def test_a_crop_of_two_columns_is_stretched_over_three() -> None:
    # Area 0.8, ratio 3/4: √0.8·3·√(3/4) = 2.32, so 2 columns; √0.8·3/√(3/4) = 3.10, so 3 rows.
    # 0.9 of two places from the left: the second. Two entries b, c become three: the centres of
    # the new ones lie at −1/6, 1/2 and 7/6 of the old ones', so b, (b + c)/2, c.
    got = transformed(crop(3, 3, (0.0, 0.0, 0.0, 0.9)), NINE)
    assert got.tolist() == [[2, 3, 4], [16, 24, 32], [128, 192, 256]]


def test_a_crop_is_what_cutting_and_resizing_an_image_gives() -> None:
    # √0.81·5 = 4.5, by √(4/3) is 5.20, so 5 columns, and 3.90, so 4 rows, the last four.
    kernel = torch.randn(6, 2, 5, 5, generator=seeded(0))
    matrix = crop(5, 5, (0.05, 1 - 1e-9, 0.7, 0.3))
    resized = interpolate(kernel[:, :, 1:], (5, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(apply(matrix, kernel), resized)


def test_the_whole_kernel_is_cropped_to_itself_and_the_middle_of_a_shift_is_none() -> None:
    # Ratio 1, in the middle of the logarithms of 3/4 and 4/3; area near 1.
    for matrix in (translate(5, 4, (0.5, 0.5)), crop(5, 4, (0.99, 0.5, 0.0, 0.0))):
        assert torch.equal(matrix, torch.eye(20))


@given(sides, sides, numbers)
def test_a_crop_keeps_constants_and_a_shift_keeps_or_drops_entries(
    height: int, width: int, numbers: Sequence[float]
) -> None:
    rows = crop(height, width, numbers).sum(1)
    torch.testing.assert_close(rows, torch.ones(height * width))
    shift = translate(height, width, numbers)
    assert set(shift.unique().tolist()) <= {0.0, 1.0}
    assert max(shift.sum(0).max(), shift.sum(1).max()) == 1


@given(sides, sides, numbers)
def test_choice_is_one_of_both(height: int, width: int, numbers: Sequence[float]) -> None:
    kind = translate if numbers[4] < 0.5 else crop
    assert torch.equal(choice(height, width, numbers), kind(height, width, numbers))


@given(sides, sides, numbers, st.sampled_from([translate, crop]))
def test_what_comes_back_is_by_the_adjoint(height, width, numbers, kind) -> None:  # type: ignore[no-untyped-def]
    """⟨T w, v⟩ = ⟨w, Tᵀ v⟩, and Tᵀ v is the gradient."""
    matrix = kind(height, width, numbers)
    w = torch.randn(4, 3, height, width, dtype=torch.float64, requires_grad=True)
    v = torch.randn(4, 3, height, width, dtype=torch.float64)
    one, other = (apply(matrix, w) * v).sum(), (w * apply(matrix.T, v)).sum()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    one.backward()
    torch.testing.assert_close(w.grad, apply(matrix.T, v), rtol=1e-12, atol=1e-12)


def test_the_adjoint_is_exact_where_sums_are() -> None:
    # Whole numbers, which shifts only move and the crop above halves.
    w, v = (torch.randint(-99, 99, (4, 3, 3, 3), generator=seeded(s)).double() for s in (0, 1))
    for matrix in (translate(3, 3, (0.9, 0.1)), crop(3, 3, (0.0, 0.0, 0.0, 0.9))):
        assert (apply(matrix, w) * v).sum() == (w * apply(matrix.T, v)).sum()


def test_shifts_are_rounded_from_a_uniform_draw() -> None:
    # Of 3: up to 0.9, so |x| < 0.5 has 0.5/0.9 = 5/9. Of 5: up to 1.5, so each third is one.
    drawn = torch.rand(20000, 2, generator=seeded(0), dtype=torch.float64).tolist()
    for side, none in ((3, 5 / 9), (5, 1 / 3)):
        # The entry in the middle goes to the row that says how far down.
        middle = side * side // 2
        rows = torch.tensor(
            [int(translate(side, side, n)[:, middle].argmax()) // side for n in drawn[:4000]]
        )
        share = [(rows == side // 2 + offset).float().mean().item() for offset in (-1, 0, 1)]
        spread = 5 * (none * (1 - none) / 4000) ** 0.5
        assert share[1] == pytest.approx(none, abs=spread)
        assert share[0] == pytest.approx((1 - none) / 2, abs=spread)
        assert sum(share) == pytest.approx(1)


def identity_seed(model: nn.Module, transform: Transform) -> int:
    """Of a generator whose first draw leaves all kernels as they are."""
    plain = kernels(model)
    for seed in range(1000):
        shadows = ShadowWeights(model, transform, seeded(seed)).draw()
        if all(torch.equal(shadows[name], w) for name, w in plain.items()):
            return seed
    raise AssertionError("no draw is the identity")


@pytest.mark.parametrize("transform", ALL)
def test_without_a_transform_it_is_the_plain_network_to_the_bit(transform: Transform) -> None:
    x, y = batch()
    plain, model = net().train(), net()
    shadow = ShadowWeights(model, transform, seeded(identity_seed(model, transform))).train()
    logits = [plain(x), shadow(x)]
    assert torch.equal(*logits)
    for answer in logits:
        cross_entropy(answer, y).backward()
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("transform", ALL)
def test_the_gradient_is_that_of_finite_differences(transform: Transform) -> None:
    x, y = batch()
    model = net().double()
    shadow = ShadowWeights(model, transform, random := seeded(5)).train()
    with torch.no_grad():
        for scale in shadow.scales:
            scale.mul_(1.3)

    def loss() -> Tensor:
        random.manual_seed(5)  # the same draw
        return cross_entropy(shadow(x.double()), y)

    loss().backward()
    for parameter in (*kernels(model).values(), *shadow.scales):
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=seeded(6))
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
                ends.append(loss())
                parameter.sub_(direction, alpha=step)
        slope = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-6, atol=1e-9)


def test_draws_repeat_by_seed_and_differ_between_steps_and_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 5), nn.Conv2d(3, 3, 5))
    with torch.no_grad():
        model[1].weight.copy_(model[0].weight)

    def draws(seed: int) -> list[Tensor]:
        shadow = ShadowWeights(model, "translate", seeded(seed))
        return [torch.stack(list(shadow.draw().values())) for _ in range(20)]

    first, again, other = draws(0), draws(0), draws(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert any(not torch.equal(first[0], later) for later in first[1:])
    assert any(not torch.equal(layers[0], layers[1]) for layers in first)


@pytest.mark.parametrize("transform", ALL)
def test_all_filters_of_a_layer_have_one_draw_and_its_scale(transform: Transform) -> None:
    model = nn.Conv2d(3, 4, 5)
    with torch.no_grad():
        model.weight.copy_(torch.randn(5, 5, generator=seeded(0)).expand(4, 3, 5, 5))
    shadow, louder = (ShadowWeights(model, transform, seeded(3)) for _ in range(2))
    with torch.no_grad():
        louder.scales[0].fill_(2.0)
    for _ in range(10):
        weight, twice = shadow.draw()["weight"], louder.draw()["weight"]
        assert torch.equal(weight, weight[:1, :1].expand(4, 3, 5, 5))
        assert torch.equal(twice, 2 * weight)


def test_evaluated_plain_it_is_the_network_and_evaluated_shadow_it_draws() -> None:
    x, _ = batch()
    model = net()
    shadow = ShadowWeights(model, "choice", seeded(0)).eval()
    assert all(torch.equal(shadow(x), net().eval()(x)) for _ in range(5))
    wished = ShadowWeights(model, "choice", seeded(0), deploy="shadow").eval()
    assert len({tuple(wished(x).flatten().tolist()) for _ in range(10)}) > 1
    assert torch.equal(model.eval()(x), net().eval()(x))  # which stays plain all the while


def test_the_model_keeps_its_names_and_the_optimiser_moves_it_and_the_scales() -> None:
    x, y = batch()
    model, names = net(), list(net().state_dict())
    shadow = ShadowWeights(model, "translate", seeded(0)).train()
    optimizer = torch.optim.SGD(shadow.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(shadow(x), y).backward()
        optimizer.step()
    assert list(model.state_dict()) == names
    for name, w in net().named_parameters():
        assert not torch.equal(w, model.get_parameter(name)), name
    assert all(scale.item() != 1 for scale in shadow.scales)
    assert len(list(shadow.parameters())) == len(list(net().parameters())) + 2


def test_bf16_leaves_the_making_of_shadows_exact() -> None:
    model = net()
    exact, mixed = (ShadowWeights(model, "crop", seeded(2)) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mixed.draw()
    for name, weight in exact.draw().items():
        assert torch.equal(weight, rounded[name])


@pytest.mark.parametrize(
    "model",
    [nn.Linear(3, 3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, (1, 5)), nn.Conv1d(3, 3, 5)],
)
def test_a_model_without_planes_of_3_by_3_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="no 2-D convolution with a kernel of 3x3 or larger"):
        ShadowWeights(model, "translate", seeded(0))


def test_a_kernel_that_is_made_of_others_is_refused_by_name() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)))
    with pytest.raises(ValueError, match=r"0\.weight is made from other weights"):
        kernels(model)


def normed() -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Flatten())


def test_statistics_for_the_plain_weights_are_the_means_over_batches() -> None:
    model, reference = normed(), normed()
    batches = list(torch.randn(3, 5, 2, 6, 6, generator=seeded(0)))
    shadow = ShadowWeights(model, "choice", seeded(0)).train()
    for inputs in batches:
        shadow(inputs)
    gathered = model[1].running_mean.clone()
    reestimate(model, batches)
    seen = torch.stack([reference[0](inputs) for inputs in batches])  # (batch, N, C, H, W)
    torch.testing.assert_close(model[1].running_mean, seen.mean((0, 1, 3, 4)))
    torch.testing.assert_close(model[1].running_var, seen.var((1, 3, 4)).mean(0))
    assert not torch.allclose(gathered, model[1].running_mean)
    update_bn(batches, reference)  # torch's own, where there is no dropout
    torch.testing.assert_close(model[4].running_var, reference[4].running_var)
