"""Several clients trained at once: each as when it is trained alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clients.cohort import count_steps, train_stack, why_not
from clients.stack import Stack, StepBatch
from clients.stacking import stacking
from clients.training import Samples, train
from fedwsa.algorithms.fedprox.client import Proximal
from fedwsa.algorithms.objective import LocalRun, Objective
from fedwsa.algorithms.scaffold.client import Scaffold
from fedwsa.algorithms.wsa.client import ScopeAlignment
from fedwsa.algorithms.wsa.instruction import ScopeInstruction
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.schema.conditions import Conditions
from fedwsa.scope.weight_scope import WeightScope
from tests.given.cohort import settings

SIZES = (23, 17, 9, 8, 5, 1)
"""Unequal: six, five, two, two, one and one batches of four; 17 and 9 end in one of five."""


PICTURE = ImageShape(1, 6, 6)
SHAPE = {"mlp": (4,), "dropout": (4,), "cnn": PICTURE, "norm": PICTURE}


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
    if kind == "dropout":
        layers = [nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 16), nn.ReLU()]
        return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(16, 3))
    if kind == "norm":
        # Without a bias, whose gradient before BatchNorm is rounding, which Adam makes a step of.
        conv = nn.Conv2d(1, 4, 3, bias=False)
        layers = [conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))
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
@pytest.mark.parametrize("batches", [(4,) * 6, (3, 3, 4, 4, 5, 4), (1, 2, 8, 8, 5, 4)])
def test_a_cohort_trains_each_client_as_alone(
    kind: str, with_objectives: bool, batches: tuple[int, ...]
) -> None:
    local, clients = settings(), range(len(SIZES))
    conditions = [Conditions(0.01 * (k + 1), 0.01 * (k % 3), batches[k], 3) for k in clients]
    content = instructions(net(kind))
    kinds: tuple[type[Objective], ...] = (ScopeAlignment, Proximal, Scaffold)
    if not with_objectives:
        kinds = ()

    def local_run(k: int) -> LocalRun:
        return LocalRun(conditions[k].lr, local.momentum, state(k, net(kind)))

    stack = Stack(net(kind), len(SIZES))
    runs = [local_run(k) for k in clients]
    objectives = [[o(stack.client(k), content, runs[k]) for o in kinds] for k in clients]
    own_samples = [samples(k, SHAPE[kind]) for k in clients]
    losses = train_stack(stack, own_samples, local, conditions, objectives)
    for k in clients:
        model, alone = net(kind), local_run(k)
        own = [o(model, content, alone) for o in kinds]
        loss = train(model, samples(k, SHAPE[kind]), local, conditions[k], own)
        assert losses[k] == pytest.approx(loss, rel=1e-5)
        assert_close(stack, k, model)
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


def assert_close(stack: Stack, k: int, model: nn.Module) -> None:
    """Client k of a stack ended as a model that was trained alone."""
    held = stack.state(k, model.state_dict())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(held[name], tensor, rtol=1e-4, atol=1e-6)


WAYS = {
    "sgd": {},
    "no momentum": {"momentum": 0.0},
    "adam": {"optimiser": "adam"},
    "adamw": {"optimiser": "adamw"},
    "clipped": {"clip_norm": 0.3},
    "masked": {"mask_absent": True},
    "all at once": {"optimiser": "adamw", "clip_norm": 0.3, "mask_absent": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["mlp", "cnn", "dropout", "norm"])
@pytest.mark.parametrize("alike", [True, False])
def test_whatever_a_client_does_at_a_step_it_does_in_a_stack(
    way: str, kind: str, alike: bool
) -> None:
    """With batches, epochs, rates, decays and a number of steps of its own, or those of all."""
    local, order = settings(**WAYS[way]), range(len(SIZES))
    if alike:
        own = [Conditions(0.05, 0.01, 4, 2, local.optimiser)] * len(SIZES)
    else:
        own = [
            Conditions(0.02 * (k + 1), 0.01 * (k % 3), 3 + k % 2, 1 + k % 3, local.optimiser, cut)
            for k, cut in zip(order, (None, 5, None, 3, None, None), strict=True)
        ]
    of_one = kind == "norm"  # BatchNorm needs two samples
    order = sorted(order[: 5 if of_one else 6], key=lambda k: -count_steps(SIZES[k], own[k]))
    keeping = ("1.running_mean", "1.running_var", "1.num_batches_tracked") if of_one else ()
    stack = Stack(net(kind), len(order), padded=not of_one, keeping=keeping)
    trained = [samples(k, SHAPE[kind]) for k in order]
    conditions = [own[k] for k in order]
    losses = train_stack(stack, trained, local, conditions, [[] for _ in order], list(order))
    for place, k in enumerate(order):
        model = net(kind)
        loss = train(model, samples(k, SHAPE[kind]), local, own[k], [], key=k)
        assert losses[place] == pytest.approx(loss, rel=1e-4)
        assert_close(stack, place, model)


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


def test_a_stack_has_one_optimiser() -> None:
    clients = [samples(0, (4,)), samples(0, (4,))]
    conditions = [Conditions(0.1, 0.0, 4, 3), Conditions(0.1, 0.0, 4, 3, "adam")]
    with pytest.raises(ValueError, match="one optimiser"):
        train_stack(Stack(net("mlp"), 2), clients, settings(), conditions, [[], []])


@pytest.mark.parametrize(
    "model",
    [
        "model=mlp",
        "model=cnn",
        "model=cnn_pfl",
        "model=resnet20",
        "model=resnet20 model.norm=batch",
    ],
)
def test_our_models_can_be_stacked(model: str) -> None:
    config = compose([*model.split(), "model.width=0.25"])
    shape = ImageShape(3, 32, 32)
    found = stacking(build_model(config.model, shape, 10, seed=0), shape, 10)
    assert found.reason is None
    assert bool(found.keeping) == ("batch" in model)
    assert why_not(settings(precision="bf16")) is None
    assert why_not(settings(weight_augmentation="crop")) == "local.weight_augmentation is set"


@pytest.mark.parametrize("kind", SHAPE)
def test_a_step_in_bfloat16_is_the_one_in_single_precision_to_rounding(kind: str) -> None:
    clients = [samples(k, SHAPE[kind]) for k in range(2)]
    x, y = (torch.stack([getattr(own, of)[:8] for own in clients]) for of in ("inputs", "labels"))
    keeping = [name for name, _ in net(kind).named_buffers()]
    single, half = (Stack(net(kind), 2, keeping=keeping, bf16=bf16) for bf16 in (False, True))
    losses = [
        stack.backward(StepBatch(x, y, [8, 8], 0, torch.arange(2))) for stack in (single, half)
    ]
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.0)
    assert not torch.equal(*losses)  # it is in use
    one, other = (
        torch.cat([g.flatten() for g in stack.gradients.values()]) for stack in (single, half)
    )
    assert other.dtype == torch.float32
    assert (one - other).norm() < 0.05 * one.norm()
