"""Ditto, APFL, pFedMe and Per-FedAvg against their derivations, on quadratics and in limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from clients.cohort import train_stack
from clients.stack import Stack
from clients.training import Samples, train
from fedwsa.algorithms.apfl.client import Mixture
from fedwsa.algorithms.beside.client import OwnModel
from fedwsa.algorithms.ditto.client import OwnByDitto
from fedwsa.algorithms.objective import GradientAt, LocalRun, Objective, TrainedOn
from fedwsa.algorithms.per_fedavg.client import MetaGradient
from fedwsa.algorithms.pfedme.client import MoreauEnvelope
from fedwsa.schema.conditions import Conditions
from tests.given.training import data, local, net

SHARP = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
BEST = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 4.0]], dtype=torch.float64)
BEGIN = torch.tensor([2.0, -1.0], dtype=torch.float64)
PER_FEDAVG = {"rate": 0.2, "first-order": False, "way": 1e-3}


def told(**of_kind: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    return {name.replace("_", "-"): settings for name, settings in of_kind.items()}


def quadratic(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of clients that minimise a_i/2·‖w − b_i‖²."""
    w = weights["w"]
    return {"w": SHARP[: len(w), None] * (w - BEST[: len(w)])}


def made(
    kind: type[Objective], content: Mapping[str, Mapping[str, object]], lr: float = 0.1
) -> list[Objective]:
    """Of three clients."""
    return [kind({"w": BEGIN.clone()}, content, LocalRun(lr)) for _ in SHARP]


def step(objectives: Sequence[Objective], w: Tensor, at: GradientAt = quadratic) -> Tensor:
    """What the objectives make of the gradients at w."""
    gradients = {"w": at({"w": w})["w"].clone()}
    type(objectives[0]).descend(objectives, {"w": w}, gradients, at)
    return gradients["w"]


def test_ditto_ends_between_a_client_s_minimum_and_the_global_model() -> None:
    pull = 2.0
    clients = made(OwnByDitto, told(ditto={"pull": pull}))
    w = BEGIN.expand(3, 2).clone()
    for _ in range(400):
        plain = quadratic({"w": w})["w"]
        assert torch.equal(step(clients, w), plain)  # the shared model is trained plainly
        w = w - 0.1 * plain
    sharp = SHARP[:, None]
    found = torch.stack([one.own["model"]["w"] for one in clients])
    torch.testing.assert_close(found, (sharp * BEST + pull * BEGIN) / (sharp + pull))


def test_the_share_of_apfl_follows_the_derivative_of_the_mixture_s_loss() -> None:
    clients = made(Mixture, told(apfl={"share": 0.4, "adapts": True}), lr=0.01)
    own = OwnModel.stacked(clients)
    own["model"]["w"].add_(torch.tensor([0.3, -0.2], dtype=torch.float64))
    v, w = own["model"]["w"].clone(), BEGIN.expand(3, 2).clone()
    share = torch.full((3,), 0.4, dtype=torch.float64, requires_grad=True)
    mixed = share[:, None] * v + (1 - share[:, None]) * w
    loss = (SHARP[:, None] / 2 * (mixed - BEST).square()).sum()
    [slope] = torch.autograd.grad(loss, share)
    step(clients, w)
    torch.testing.assert_close(own["share"]["share"], share.detach() - 0.01 * slope)
    gradient = 0.4 * SHARP[:, None] * (0.4 * v + 0.6 * w - BEST)  # by the share before
    torch.testing.assert_close(own["model"]["w"], v - 0.01 * gradient)
    after = own["share"]["share"].clone()
    step(clients, w)
    assert torch.equal(own["share"]["share"], after)  # once in a round


def test_the_gradient_of_pfedme_is_that_of_the_moreau_envelope() -> None:
    pull = 3.0
    settings = {"pull": pull, "rate": 0.1, "steps": 300}
    clients = made(MoreauEnvelope, told(pfedme=settings))
    w, sharp = BEGIN.expand(3, 2).clone(), SHARP[:, None]
    # min_θ a/2·‖θ − b‖² + λ/2·‖θ − w‖² is aλ/(a + λ)/2·‖w − b‖².
    torch.testing.assert_close(step(clients, w), sharp * pull / (sharp + pull) * (w - BEST))
    found = torch.stack([one.own["model"]["w"] for one in clients])
    torch.testing.assert_close(found, (sharp * BEST + pull * w) / (sharp + pull))


@pytest.mark.parametrize("first_order", [True, False])
def test_the_gradient_of_per_fedavg_is_that_of_the_loss_after_a_step(first_order: bool) -> None:
    settings = PER_FEDAVG | {"first-order": first_order}
    clients = made(MetaGradient, told(per_fedavg=settings))
    w = BEGIN.expand(3, 2).clone()
    after = 1 - 0.2 * SHARP[:, None]  # w⁺ − b = (1 − αa)·(w − b)
    expected = SHARP[:, None] * after * (w - BEST) * (1.0 if first_order else after)
    for _ in range(3):  # with batches before, too
        torch.testing.assert_close(step(clients, w), expected)


def test_the_three_gradients_of_per_fedavg_are_of_three_batches() -> None:
    seen: list[str] = []

    def batch(name: str) -> GradientAt:
        def at(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
            seen.append(name)
            return quadratic(weights)

        return at

    clients, w = made(MetaGradient, told(per_fedavg=PER_FEDAVG)), BEGIN.expand(3, 2)
    for name in "abc":
        seen.clear()
        gradients = quadratic({"w": w})
        MetaGradient.descend(clients, {"w": w}, gradients, batch(name))
    assert seen == ["b", "c", "a", "a"]  # the step, the gradient there, the second derivative


LIMITS: dict[str, tuple[type[Objective], dict[str, Mapping[str, object]]]] = {
    "ditto": (OwnByDitto, told(ditto={"pull": 0.0})),
    "apfl": (Mixture, told(apfl={"share": 1.0, "adapts": False})),
}
SETTLED = Conditions(0.1, 0.01, 5, 3)


def drawn(k: int = 0) -> Samples:
    x, y = data(23 - 2 * k)
    return Samples(x, y, lambda p: p, torch.Generator().manual_seed(k))


@pytest.mark.parametrize("name", LIMITS)
def test_without_a_pull_the_own_model_is_trained_as_alone(name: str) -> None:
    """With momentum and decay: to the bit the shared one, which begins where it does."""
    kind, content = LIMITS[name]
    plain, model, settings = net(), net(), local(momentum=0.9)
    train(plain, drawn(), settings, SETTLED, [])
    run = LocalRun(0.1, 0.9, weight_decay=0.01)
    objective = kind(model, content, run)
    train(model, drawn(), settings, SETTLED, [objective])
    objective.end()
    for key, weight in plain.named_parameters():
        assert torch.equal(dict(model.named_parameters())[key], weight)
        torch.testing.assert_close(run.state[name][key], weight.detach(), rtol=1e-5, atol=1e-7)


def test_per_fedavg_with_a_step_of_zero_is_fedavg() -> None:
    plain, model, settings = net(), net(), local(momentum=0.9)
    train(plain, drawn(), settings, SETTLED, [])
    content = told(per_fedavg=PER_FEDAVG | {"rate": 0.0})
    train(model, drawn(), settings, SETTLED, [MetaGradient(model, content, LocalRun(0.1))])
    for weight, other in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=1e-6, atol=1e-8)


def test_a_mixture_is_evaluated_with_the_global_model_as_received() -> None:
    state = {"apfl": {"w": torch.tensor([4.0])}, "apfl share": {"share": torch.tensor(0.25)}}
    content = {"apfl": {}, "arrays": {"w": torch.tensor([8.0])}}
    assert Mixture.evaluated_with(content, state)["w"].tolist() == [7.0]
    assert Mixture.evaluated_with(content, {}) == {}


def test_a_client_of_per_fedavg_is_evaluated_after_a_step_on_all_its_samples() -> None:
    model, by_hand = net(), net()
    x, y = data(300)

    samples = TrainedOn(x, y, 3, lambda p: p, lambda purpose: torch.Generator())
    MetaGradient.settle(model, told(per_fedavg=PER_FEDAVG), {}, samples)
    nn.functional.cross_entropy(by_hand(x), y).backward()
    for weight, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(weight.detach(), (other - 0.2 * other.grad).detach())


STACKED: dict[str, tuple[type[Objective], dict[str, Mapping[str, object]]]] = {
    "ditto": (OwnByDitto, told(ditto={"pull": 0.5})),
    "apfl": (Mixture, told(apfl={"share": 0.4, "adapts": True})),
    "pfedme": (MoreauEnvelope, told(pfedme={"pull": 5.0, "rate": 0.05, "steps": 3})),
    "per-fedavg": (MetaGradient, told(per_fedavg=PER_FEDAVG | {"way": 0.1})),
}


def dropping() -> nn.Module:
    return nn.Sequential(*net()[:2], nn.Dropout(0.3), net()[2])


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("network", [net, dropping])
def test_clients_in_a_stack_are_trained_as_alone(
    name: str, network: Callable[[], nn.Module]
) -> None:
    """With rates of their own, batches of several lengths, and some who end before others."""
    kind, content = STACKED[name]
    settings, count = local(momentum=0.5), 4
    conditions = [Conditions(0.02 * (k + 1), 0.01, 5, 3) for k in range(count)]

    def run(k: int) -> LocalRun:
        own = {n: p.detach() + 0.1 * k for n, p in network().named_parameters()}
        state = {name: own, "apfl share": {"share": torch.tensor(0.3)}} if k % 2 else {}
        return LocalRun(conditions[k].lr, 0.5, state, weight_decay=0.01)

    stack, runs = Stack(network(), count), [run(k) for k in range(count)]
    objectives = [[kind(stack.client(k), content, runs[k])] for k in range(count)]
    train_stack(
        stack, [drawn(k) for k in range(count)], settings, conditions, objectives, range(count)
    )
    for k in range(count):
        model, alone = network(), run(k)
        objective = kind(model, content, alone)
        train(model, drawn(k), settings, conditions[k], [objective], key=k)
        for key, weight in model.named_parameters():
            torch.testing.assert_close(stack.weights[key][k], weight.detach())
        assert objectives[k][0].end() == pytest.approx(objective.end())
        for group, kept in alone.state.items():
            for key, tensor in kept.items():
                torch.testing.assert_close(runs[k].state[group][key], tensor)
