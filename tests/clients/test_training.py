"""Local training: the plain algorithm, its order of samples, its conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clients.training import Samples, train
from fedwsa import seeding
from fedwsa.algorithms.wsa.client import ScopeAlignment
from fedwsa.data.evaluation import evaluate
from fedwsa.data.examples import Examples, batch_sizes
from fedwsa.data.images import ImageData
from fedwsa.schema.compose import compose
from fedwsa.schema.conditions import Conditions, draw_conditions
from fedwsa.schema.sections import Local
from tests.given.fedwsa import content
from tests.given.training import data, local, net


def run(model: nn.Module, settings: Local, objectives=(), n: int = 23) -> float:
    x, y = data(n)
    samples = Samples(x, y, lambda p: p, seeding.generator(0, "train", 1, 0))
    return train(model, samples, settings, Conditions.usual(settings), objectives)


def test_one_batch_of_everything_is_gradient_descent() -> None:
    # w ← w − η(∇L + weight_decay·w), twice, without momentum.
    model, reference = net(), net()
    settings = local(epochs=2, batch_size=100, lr=0.1, momentum=0.0, weight_decay=0.01)
    loss = run(model, settings)
    x, y = data()
    losses = []
    for _ in range(2):
        value = cross_entropy(reference(x), y)
        losses.append(value.item())
        gradients = torch.autograd.grad(value, list(reference.parameters()))
        with torch.no_grad():
            for p, g in zip(reference.parameters(), gradients, strict=True):
                p -= 0.1 * (g + 0.01 * p)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_an_epoch_sees_each_sample_once_and_never_a_batch_of_one() -> None:
    assert batch_sizes(13, 4) == [4, 4, 5]
    assert batch_sizes(14, 4) == [4, 4, 4, 2]
    assert batch_sizes(1, 4) == [1]
    assert batch_sizes(3, 1) == [1, 1, 1]  # asked for
    assert batch_sizes(8, 4) == [4, 4]


@pytest.mark.parametrize("n", [13, 5001])
def test_pieces_of_an_epoch_are_whole_batches_and_hold_each_sample_once(n: int) -> None:
    x = torch.arange(n)
    samples = Samples(x[:, None], x, lambda p: p * 2, torch.Generator().manual_seed(0))
    first = list(samples.epoch(batch_sizes(n, 4)))
    seen = torch.cat([y for _, y in first])
    assert seen.sort().values.tolist() == x.tolist()
    assert all(torch.equal(inputs[:, 0], y * 2) for inputs, y in first)
    assert all(len(y) % 4 == 0 for _, y in first[:-1])
    assert (len(first) > 1) == (n > 2048)
    again = torch.cat([y for _, y in samples.epoch(batch_sizes(n, 4))])
    assert not torch.equal(seen, again)


@pytest.mark.parametrize("changes", [{"fused": False}, {"channels_last": True}])
def test_faster_kernels_train_to_the_same_weights(changes: dict) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(23, 3, 8, 8), torch.randint(0, 3, (23,))
    trained = []
    for settings in (local(epochs=3), local(epochs=3, **changes)):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
        if settings.channels_last:
            model = model.to(memory_format=torch.channels_last)
        samples = Samples(x, y, lambda p: p, torch.Generator().manual_seed(0))
        train(model, samples, settings, Conditions.usual(settings), ())
        trained.append(model)
    for p, q in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_bf16_trains_close_to_fp32_and_not_the_same() -> None:
    # bfloat16 has 8 bits of mantissa: a relative error of 2^-8 in each product.
    exact, rounded = net(), net()
    losses = [run(exact, local(epochs=4)), run(rounded, local(epochs=4, precision="bf16"))]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2**-6)
    for p, q in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert q.dtype == torch.float32
        assert (p - q).norm() < 2**-5 * p.norm()


def test_strength_zero_trains_to_the_same_bits_as_no_alignment() -> None:
    plain, aligned, strong = net(), net(), net()
    run(plain, local())
    for model, strength in ((aligned, 0.0), (strong, 1.0)):
        objective = ScopeAlignment(model, content(strength))
        run(model, local(), [objective])
    for p, q in zip(plain.parameters(), aligned.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not torch.equal(plain[0].weight, strong[0].weight)


def test_alignment_draws_the_scope_towards_its_target() -> None:
    kl = []
    for strength in (0.0, 1.0):
        model = net()
        objective = ScopeAlignment(model, content(strength))
        run(model, local(lr=0.1), [objective])
        kl.append(sum(objective.end()["wsa-kl"]))
    assert kl[1] < 0.2 * kl[0]


def test_conditions_are_drawn_per_client_and_keyed_by_seed() -> None:
    settings = compose(["local=differing"]).local
    drawn = [draw_conditions(settings, 0, client) for client in range(60)]
    assert drawn == [draw_conditions(settings, 0, client) for client in range(60)]
    assert drawn != [draw_conditions(settings, 1, client) for client in range(60)]
    assert sorted({c.lr for c in drawn}) == pytest.approx([0.009, 0.03, 0.09])
    assert {c.weight_decay for c in drawn} == {0.0, 1e-3, 1e-2}
    assert {c.batch_size for c in drawn} == {16, 32, 64}
    assert {c.epochs for c in drawn} == {2, 5, 8}
    equal = compose(["local=equal"]).local
    assert {draw_conditions(equal, 0, c) for c in range(5)} == {Conditions(0.03, 1e-5, 32, 5)}


def test_a_list_that_is_added_changes_no_other_draw_and_there_is_always_an_epoch() -> None:
    fewer = compose(["local=differing", "local.batch_sizes=null"]).local
    more = compose(
        ["local=differing", "local.optimisers=[sgd,adam]", "local.epoch_factors=[0.01]"]
    ).local
    for client in range(20):
        a, b = draw_conditions(fewer, 0, client), draw_conditions(more, 0, client)
        assert a.weight_decay == b.weight_decay
        assert b.epochs == 1
        factor = a.lr / 0.03
        assert b.lr == pytest.approx(factor * (0.03 if b.optimiser == "sgd" else 0.001))


def test_a_clipped_step_is_no_longer_than_the_learning_rate_times_the_norm() -> None:
    changes = {"epochs": 1, "batch_size": 100, "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1}
    steps = []
    for norm in (None, 1e6, 0.05):
        model, before = net(), net()
        run(model, local(**changes, clip_norm=norm))
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        steps.append(torch.cat([(p - q).detach().flatten() for p, q in pairs]))
    assert torch.equal(steps[0], steps[1])
    assert steps[2].norm().item() == pytest.approx(0.1 * 0.05, rel=1e-4)
    torch.testing.assert_close(steps[2] / steps[2].norm(), steps[0] / steps[0].norm())


@pytest.mark.parametrize(("kind", "reference"), [("adam", torch.optim.Adam), ("adamw", None)])
def test_the_optimiser_is_torch_s(kind: str, reference: type | None) -> None:
    settings = local(epochs=3, batch_size=100, optimiser=kind, adam_lr=0.01, weight_decay=0.1)
    model, plain = net(), net()
    run(model, settings)
    x, y = data()
    optimizer = (reference or torch.optim.AdamW)(plain.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(plain(x), y).backward()
        optimizer.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_keys_differ_by_purpose_and_parts() -> None:
    keys = {
        seeding.key(*k)
        for k in [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 1, 0)]
    }
    assert len(keys) == 6
    assert all(0 <= k < 2**63 for k in keys)


def test_a_seeded_block_repeats_and_leaves_the_outside_alone() -> None:
    import random

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    with seeding.seeded(3, "x"):
        first = draw()
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with seeding.seeded(3, "x"):
        assert draw() == first
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]
    assert torch.get_rng_state().tolist() == state[2]


def test_a_score_counts_hits_over_batches() -> None:
    # The model answers the first pixel's class: 0, 1, 1, 2 against truth 0, 1, 2, 2.
    pixels = torch.tensor([0, 1, 1, 2], dtype=torch.uint8).view(4, 1, 1, 1)
    truth = torch.tensor([0, 1, 2, 2])
    images = Examples(pixels, truth)
    facts = ImageData(images, images, 3, (0.0,), (1 / 255,))

    class Answer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(3)[x.flatten().round().long()] * 100.0

    score = evaluate(Answer(), images, facts, "cpu", batch_size=3)
    assert (score.accuracy, score.examples) == (0.75, 4)
    assert score.loss == pytest.approx(100 / 4)
    assert evaluate(Answer(), images[torch.arange(0)], facts, "cpu", 3).examples == 0
