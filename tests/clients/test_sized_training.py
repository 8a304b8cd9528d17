"""What local training can do about sizes and absent classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clients.training import Samples, train
from fedwsa.algorithms.sizes.client import scaled
from fedwsa.schema.conditions import Conditions
from tests.given.training import local, net


def test_absent_classes_are_left_out_of_the_loss() -> None:
    """With class 1 absent its logit counts as 0: no gradient reaches its row of the classifier."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 4, generator=random), torch.tensor([0, 2] * 10)
    model, before = net(), net()
    samples = Samples(x, y, lambda p: p, random)
    one_step = local(
        epochs=1, batch_size=100, lr=0.1, momentum=0.0, weight_decay=0.0, mask_absent=True
    )
    loss = train(model, samples, one_step, Conditions.usual(one_step), [])
    logits = before(x) * torch.tensor([1.0, 0.0, 1.0])
    expected = cross_entropy(logits, y)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, msg=name)
    assert torch.equal(model[2].weight[1], before[2].weight[1])
    assert not torch.equal(model[2].weight[0], before[2].weight[0])


def test_the_scaler_divides_hidden_activations_in_training_alone() -> None:
    model, x = net(), torch.randn(5, 4)
    hidden = model[0](x)
    louder = model[2](torch.relu(hidden / 0.25))
    plain = model(x)
    with scaled(model, 0.25):
        torch.testing.assert_close(model(x), louder)
        assert torch.equal(model.eval()(x), plain)
    assert torch.equal(model.train()(x), plain)
    with scaled(model, 1.0):
        assert torch.equal(model(x), plain)


def test_a_norm_undoes_the_scaler() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4, eps=0.0), nn.Flatten(), nn.Linear(64, 3)
    )
    x = torch.randn(2, 1, 6, 6)
    plain = model(x)
    with scaled(model, 0.25):
        torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-5)
