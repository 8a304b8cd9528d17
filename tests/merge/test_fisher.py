"""Fisher information against slow ways to compute it, and what is merged by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedwsa import seeding
from fedwsa.merge.average import average
from fedwsa.merge.fisher import fisher
from fedwsa.merge.fisher_checks import unseen
from fedwsa.merge.fisher_information import fisher_information
from fedwsa.merge.task_arithmetic import task_arithmetic
from fedwsa.merge.ugm import ugm
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape, InputShape, TextShape
from fedwsa.schema.compose import compose

State = dict[str, Tensor]


def drawn(seed: int, low: float = -1.0, high: float = 1.0) -> State:
    random = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)

    return {"a.weight": tensor(3, 4), "a.bias": tensor(3)}


MODELS, BASE = [drawn(1), drawn(2), drawn(3)], drawn(0)
FISHERS = [drawn(s, 0.1, 2.0) for s in (11, 12, 13)]
COUNTS = [10.0, 40.0, 25.0]


def zeros(like: State) -> State:
    return {name: torch.zeros_like(t) for name, t in like.items()}


def assert_same(one: State, other: State, atol: float = 1e-12) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=atol)


# --- the information -------------------------------------------------------------------------


def by_loop(model: nn.Module, x: Tensor, y: Tensor, batch: int = 1) -> State:
    """Backward passes, one for each batch; squared, then the mean over batches."""
    model.eval()
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for start in range(0, len(x), batch):
        model.zero_grad()
        part = slice(start, start + batch)
        cross_entropy(model(x[part]), y[part]).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                found[name] += p.grad**2 * len(x[part]) / len(x)
    return found


def network(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    text = name.startswith("char")
    shape: InputShape = TextShape(12) if text else ImageShape(3, 16, 16)
    small = [] if name in ("resnet20", "vit") else ["model.depth=2"]
    width = "model.width=0.25"
    model = build_model(compose([f"model={name}", width, *small]).model, shape, 5, seed=0)
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (23, 12) if text else (23,), generator=random)
    if text:
        return model, torch.randint(0, 5, (23, 12), generator=random), labels
    x = torch.randn(23, *shape, generator=random)
    model.train()
    model(x)  # running statistics that are not those of the beginning
    return model, x, labels


@pytest.mark.parametrize("name", ["mlp", "cnn_pfl", "resnet20", "char_transformer", "char_lstm"])
def test_it_is_a_loop_of_backward_passes_over_single_samples(name: str) -> None:
    # Dropout, batch norms, attention, recurrent layers.
    model, x, y = network(name)
    expected = by_loop(model, x, y)
    found = fisher_information(model.train(), x, y, chunk=10)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-8)
        assert not value.requires_grad
    assert not model.training


def test_squared_gradients_of_batches_are_another_number() -> None:
    # E[g²] against E[(mean of 50 g)²], which is up to 50 times smaller: the samples' gradients
    # point everywhere, and their mean cancels.
    model, _, _ = network("mlp")
    random = torch.Generator().manual_seed(2)
    x, y = torch.randn(200, 3, 16, 16, generator=random), torch.arange(200) % 5
    right, wrong = fisher_information(model, x, y), by_loop(model, x, y, batch=50)
    total = [sum(float(t.sum()) for t in f.values()) for f in (right, wrong)]
    assert total[0] > 10 * total[1]


def test_of_logistic_regression_by_hand() -> None:
    # ℓ = −log softmax(Wx)_y, so ∂ℓ/∂W_cj = (p_c − [c = y])·x_j. With W = 0 every p_c is 1/2:
    # the squares are x_j²/4 whatever the labels, the bias' are 1/4.
    model = nn.Linear(2, 2).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    found = fisher_information(model, x, torch.tensor([0, 1]))
    mean = [(1 + 9) / 2 / 4, (4 + 0) / 2 / 4]
    torch.testing.assert_close(found["weight"], torch.tensor([mean, mean], dtype=torch.float64))
    torch.testing.assert_close(found["bias"], torch.full((2,), 0.25, dtype=torch.float64))


def test_labels_drawn_from_the_model_give_its_own_fisher_information() -> None:
    # E_y (p_c − [c = y])² = p_c(1 − p_c), the diagonal of the covariance of a one-hot draw.
    model = nn.Linear(2, 3)
    x = torch.tensor([[0.5, -1.0]]).repeat(20000, 1)
    found = fisher_information(model, x, random=seeding.generator(0, "fisher"))
    p = model(x[:1]).softmax(1)[0].detach()
    expected = (p * (1 - p))[:, None] * x[0] ** 2
    torch.testing.assert_close(found["weight"], expected, rtol=0.05, atol=0)  # 1/√20000 = 0.7 %
    again = fisher_information(model, x, random=seeding.generator(0, "fisher"), chunk=999)
    torch.testing.assert_close(again["weight"], found["weight"])  # drawn by key, not by chunk


class _Stranger(nn.Module):
    """Looks at a value, which torch cannot do for many samples at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out if out.sum().item() > 0 else 2 * out


def test_a_network_that_cannot_be_stacked_is_taken_sample_by_sample() -> None:
    model, x, y = _Stranger(), torch.randn(9, 3), torch.arange(9) % 2
    found = fisher_information(model, x, y)
    expected = by_loop(model, x, y)
    torch.testing.assert_close(found["layer.weight"], expected["layer.weight"])


def test_frozen_weights_have_fisher_information_too() -> None:
    model, x, y = nn.Linear(3, 2), torch.randn(9, 3), torch.arange(9) % 2
    free = fisher_information(model, x, y)
    model.requires_grad_(False)
    assert torch.equal(fisher_information(model, x, y)["weight"], free["weight"])


def test_what_has_no_fisher_information_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    x, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="1 normalises by the statistics of the batch"):
        fisher_information(model, x, y)
    with pytest.raises(ValueError, match="no samples"):
        fisher_information(nn.Linear(3, 2), x[:0], y[:0])
    with pytest.raises(ValueError, match="need a generator"):
        fisher_information(nn.Linear(3, 2), x)


# --- the operators ---------------------------------------------------------------------------


def test_quadratics_merge_to_their_exact_joint_minimum() -> None:
    # l_t = ½(θ − m_t)ᵀH_t(θ − m_t), H_t diagonal, θ_t the minimum of l_t + ½‖θ − θ_0‖²_{H_0}:
    #   θ_t = (H_t m_t + H_0 θ_0)/(H_t + H_0).
    # The minimum of λ·Σ l_t + ½‖θ − θ_0‖²_{H_0} is (λΣ H_t m_t + H_0 θ_0)/(λΣ H_t + H_0).
    # H_t = s_t F_t, H_0 = s_0 F_0 + δ_0.
    base_fisher, s0, prior = drawn(20, 0.0, 1.0), 7.0, 0.3
    for scale in (1.0, 0.5, 2.0):
        trained, joint = [zeros(BASE) for _ in MODELS], zeros(BASE)
        for name, origin in BASE.items():
            hold = s0 * base_fisher[name] + prior
            curved = [s * f[name] for s, f in zip(COUNTS, FISHERS, strict=True)]
            for own, minimum, h in zip(trained, MODELS, curved, strict=True):
                own[name] = (h * minimum[name] + hold * origin) / (h + hold)
            pull = sum(h * m[name] for h, m in zip(curved, MODELS, strict=True))
            joint[name] = (scale * pull + hold * origin) / (scale * sum(curved) + hold)
        how = {"base": BASE, "fishers": FISHERS, "weights": COUNTS, "base_fisher": base_fisher}
        how |= {"base_weight": s0, "prior": prior, "scale": scale}
        assert_same(ugm(trained, **how), joint)
        # The minima of the l_t themselves do not merge to it.
        off = ugm(MODELS, **how)["a.weight"] - joint["a.weight"]
        assert off.abs().max() > 1e-3


def test_fisher_weighted_quadratics_merge_to_the_minimum_of_their_sum() -> None:
    # Without a base, θ_t = m_t, and Σ s_t H_t (θ − m_t) = 0.
    merged = fisher(MODELS, fishers=FISHERS, weights=COUNTS)
    for name, value in merged.items():
        curved = [s * f[name] for s, f in zip(COUNTS, FISHERS, strict=True)]
        gradient = sum(h * (value - m[name]) for h, m in zip(curved, MODELS, strict=True))
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_without_fisher_information_ugm_is_task_arithmetic(scale: float) -> None:
    nothing = [zeros(BASE)] * 3
    merged = ugm(MODELS, base=BASE, fishers=nothing, scale=scale, prior=0.5)
    assert_same(merged, task_arithmetic(MODELS, base=BASE, scale=scale))


def test_without_a_hold_of_the_base_ugm_is_the_fisher_average() -> None:
    expected = fisher(MODELS, fishers=FISHERS, weights=COUNTS)
    assert_same(ugm(MODELS, base=BASE, fishers=FISHERS, weights=COUNTS, prior=0.0), expected)


def test_equal_fishers_and_a_large_prior_give_the_weighted_average() -> None:
    plain = average(MODELS, weights=COUNTS)
    assert_same(fisher(MODELS, fishers=[FISHERS[0]] * 3, weights=COUNTS), plain)
    assert_same(fisher(MODELS, fishers=FISHERS, weights=COUNTS, prior=1e13), plain)


def test_entries_that_no_fisher_knows_take_the_weighted_mean_and_are_counted() -> None:
    dead = [{k: t.clone() for k, t in f.items()} for f in FISHERS]
    for own in dead:
        own["a.weight"][1] = 0.0
        own["a.bias"][2] = 0.0
    dead[0]["a.bias"][0] = 0.0  # the others know it
    assert unseen(dead) == (5, 15)
    mean = average(MODELS, weights=COUNTS)
    usual = fisher(MODELS, fishers=FISHERS, weights=COUNTS)
    for merged in (
        fisher(MODELS, fishers=dead, weights=COUNTS),
        ugm(MODELS, base=BASE, fishers=dead, weights=COUNTS, prior=0.0),
    ):
        torch.testing.assert_close(merged["a.weight"][1], mean["a.weight"][1])
        torch.testing.assert_close(merged["a.bias"][2], mean["a.bias"][2])
        torch.testing.assert_close(merged["a.weight"][0], usual["a.weight"][0])
    # A prior knows them: then they are added up as in task arithmetic.
    held = ugm(MODELS, base=BASE, fishers=dead, weights=COUNTS, prior=0.1)
    added = task_arithmetic(MODELS, base=BASE)
    torch.testing.assert_close(held["a.weight"][1], added["a.weight"][1])


def test_statistics_and_counts_are_averaged_or_kept() -> None:
    more = [
        {**m, "n.running_var": torch.full((2,), v), "n.num_batches_tracked": torch.tensor(3)}
        for m, v in zip(MODELS, (1.0, 2.0, 6.0), strict=True)
    ]
    base = {**BASE, "n.running_var": torch.ones(2), "n.num_batches_tracked": torch.tensor(0)}
    for merged in (fisher(more, fishers=FISHERS), ugm(more, base=base, fishers=FISHERS, prior=0.0)):
        assert merged["n.running_var"].tolist() == [3.0, 3.0]
        assert int(merged["n.num_batches_tracked"]) == 3


def test_all_zero_fishers_need_a_prior() -> None:
    nothing = [zeros(BASE)] * 3
    for refused in (
        lambda: fisher(MODELS, fishers=nothing),
        lambda: ugm(MODELS, base=BASE, fishers=nothing, prior=0.0),
        # The only one that knows anything does not count.
        lambda: fisher(MODELS, fishers=[FISHERS[0], *nothing[1:]], weights=[0, 1, 1]),
    ):
        with pytest.raises(ValueError, match="all Fisher information is zero"):
            refused()
    assert_same(fisher(MODELS, fishers=nothing, prior=0.1), average(MODELS))


def test_the_order_of_the_models_does_not_matter() -> None:
    turned = [2, 0, 1]
    models, fishers = [MODELS[i] for i in turned], [FISHERS[i] for i in turned]
    counts = [COUNTS[i] for i in turned]
    assert_same(
        fisher(models, fishers=fishers, weights=counts),
        fisher(MODELS, fishers=FISHERS, weights=COUNTS),
    )
    assert_same(
        ugm(models, base=BASE, fishers=fishers, weights=counts, prior=0.3),
        ugm(MODELS, base=BASE, fishers=FISHERS, weights=COUNTS, prior=0.3),
    )


def test_identical_models_merge_to_themselves_where_the_docstrings_say_so() -> None:
    same = [MODELS[0]] * 3
    assert_same(fisher(same, fishers=FISHERS, weights=COUNTS), MODELS[0], atol=0)
    how = {"fishers": FISHERS, "weights": COUNTS}
    assert_same(ugm(same, base=BASE, scale=1 / 3, prior=0.7, **how), MODELS[0])
    assert_same(ugm(same, base=BASE, **how, prior=0.0), MODELS[0])
    assert_same(ugm(same, base=MODELS[0], prior=0.7, **how), MODELS[0], atol=0)
    further = ugm(same, base=BASE, prior=0.7, **how)
    step = (MODELS[0]["a.weight"] - BASE["a.weight"]).abs()
    assert ((further["a.weight"] - BASE["a.weight"]).abs() > step).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"a.bias": torch.tensor([1.0, -1e-9, 1.0])}, "a.bias: Fisher 2 has negative"),
        ({"a.bias": torch.tensor([1.0, np.nan, 1.0])}, "NaN or infinite"),
        ({"a.bias": torch.ones(4)}, r"the shape \(4,\), the model \(3,\)"),
        ({"b": torch.ones(1)}, "Fisher 2 has b, which Fisher 1 lacks"),
    ],
)
def test_what_is_no_fisher_information_of_the_models_is_refused(change: State, reason: str) -> None:
    wrong = [FISHERS[0], {**FISHERS[1], **change}, FISHERS[2]]
    with pytest.raises(ValueError, match=reason):
        fisher(MODELS, fishers=wrong)
    with pytest.raises(ValueError, match=reason):
        ugm(MODELS, base=BASE, fishers=wrong, prior=0.0)
    with pytest.raises(ValueError, match="3 models need as many Fishers; got 2"):
        fisher(MODELS, fishers=FISHERS[:2])
    with pytest.raises(ValueError, match="the base's Fisher lacks"):
        ugm(MODELS, base=BASE, fishers=FISHERS, base_fisher={"a.bias": torch.ones(3)})
