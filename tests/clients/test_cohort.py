"""Several clients trained at once: each as when it is trained alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clients.cohort import Stack, train_stack, why_not
from clients.stacking import stacking
from clients.training import Samples, train
from fedwsa.algorithms.fedprox.client import Proximal
from fedwsa.algorithms.objective import LocalRun, Objective
from fedwsa.algorithms.scaffold.client import Scaffold
from fedwsa.algorithms.wsa.client import ScopeAlignment
from fedwsa.algorithms.wsa.instruction import ScopeInstruction
from fedwsa.models import build_model
from fedwsa.schema.compose import compose
from fedwsa.schema.conditions import Conditions
from fedwsa.scope.weight_scope import WeightScope
from tests.given.cohort import settings

SIZES = (23, 17, 9, 8, 5, 1)
"""Unequal: six, five, two, two, one and one batches of four; 17 and 9 end in one of five."""


def samples(k: int, shape: tuple[int, ...]) -> Samples:
    """Client k's samples, with noise that is drawn while they are prepared."""
    data, random = (torch.Generator().manual_seed(s * 100 + k) for s in (1, 2))
    x = torch.randn(SIZES[k], *shape, generator=data)
    y = torch.randint(0, 3, (SIZES[k],), generator=data)
    return Samples(x, y, lambda p: p + torch.randn(p.shape, generator=random) / 10, random)


def net(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def instructions(model: nn.Module) -> dict:
    """What FedWSA, FedProx and SCAFFOLD would send, all at once."""
    scope = WeightScope.measure(model)
    control = {k: 0.01 * torch.randn_like(p) for k, p in model.named_parameters()}
    target = WeightScope(scope.names, scope.mean, 2 * scope.variance)
    records = ScopeInstruction(target, strength=5.0).to_records()
    records["config"]["proximal-mu"] = 0.1
    return {**records, "scaffold-control": control}


def state(k: int, model: nn.Module) -> dict:
    """Every second client has a control variate of its own."""
    random = torch.Generator().manual_seed(k)
    own = {n: 0.01 * torch.randn(p.shape, generator=random) for n, p in model.named_parameters()}
    return {"scaffold": own} if k % 2 else {}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("with_objectives", [False, True])
def test_a_cohort_trains_each_client_as_alone(kind: str, with_objectives: bool) -> None:
    shape = (4,) if kind == "mlp" else (1, 6, 6)
    local, clients = settings(), range(len(SIZES))
    conditions = [Conditions(0.01 * (k + 1), 0.01 * (k % 3), 4, 3) for k in clients]
    content = instructions(net(kind))
    kinds: tuple[type[Objective], ...] = (ScopeAlignment, Proximal, Scaffold)
    if not with_objectives:
        kinds = ()

    def local_run(k: int) -> LocalRun:
        return LocalRun(conditions[k].lr, local.momentum, state(k, net(kind)))

    stack = Stack(net(kind), len(SIZES))
    runs = [local_run(k) for k in clients]
    objectives = [[o(stack.client(k), content, runs[k]) for o in kinds] for k in clients]
    losses = train_stack(stack, [samples(k, shape) for k in clients], local, conditions, objectives)
    for k in clients:
        model, alone = net(kind), local_run(k)
        own = [o(model, content, alone) for o in kinds]
        loss = train(model, samples(k, shape), local, conditions[k], own)
        assert losses[k] == pytest.approx(loss, rel=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                stack.weights[name][k], parameter.detach(), rtol=1e-4, atol=1e-6
            )
        for one, other in zip(own, objectives[k], strict=True):
            reported = one.end()
            for key, values in other.end().items():
                assert values == pytest.approx(reported.pop(key), rel=1e-4)
            assert not reported
        if kinds:
            for name, kept in alone.state["scaffold"].items():
                torch.testing.assert_close(
                    runs[k].state["scaffold"][name], kept, rtol=1e-3, atol=1e-5
                )


def test_a_client_that_is_done_is_left_alone() -> None:
    # Weight decay and momentum would go on moving it.
    local = settings(epochs=1)
    stack = Stack(net("mlp"), 2)
    clients = [samples(0, (4,)), samples(4, (4,))]
    conditions = [Conditions(0.1, 0.1, 4, 1)] * 2
    train_stack(stack, clients, local, conditions, [[], []])
    alone = net("mlp")
    train(alone, samples(4, (4,)), local, conditions[1], [])
    torch.testing.assert_close(stack.weights["0.weight"][1], alone[0].weight.detach())


def test_clients_must_be_ordered_by_steps() -> None:
    clients = [samples(4, (4,)), samples(0, (4,))]
    with pytest.raises(ValueError, match="ordered by their number of steps"):
        train_stack(
            Stack(net("mlp"), 2), clients, settings(), [Conditions(0.1, 0.0, 4, 3)] * 2, [[], []]
        )


def test_a_stack_has_one_batch_size_and_number_of_epochs() -> None:
    clients = [samples(0, (4,)), samples(0, (4,))]
    conditions = [Conditions(0.1, 0.0, 4, 3), Conditions(0.1, 0.0, 8, 3)]
    with pytest.raises(ValueError, match="one batch size"):
        train_stack(Stack(net("mlp"), 2), clients, settings(), conditions, [[], []])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("model=mlp", None),
        ("model=cnn", None),
        ("model=cnn_pfl", "dropout"),
        ("model=resnet20", None),
        ("model=resnet20 model.norm=batch", "BatchNorm2d keeps statistics"),
    ],
)
def test_models_that_cannot_be_stacked_say_why(model: str, reason: str | None) -> None:
    config = compose([*model.split(), "model.width=0.25"])
    why = stacking(build_model(config.model, (3, 32, 32), 10, seed=0), (3, 32, 32), 10).reason
    assert (why is None) if reason is None else reason in why
    assert why_not(settings(precision="bf16")) == "local.precision is not fp32"
