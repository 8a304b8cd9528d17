"""MOON's contrastive term (arXiv 2103.16257)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from clients.passes import SinglePasses
from clients.training import Conditions, Samples, train
from fedwsa.algorithms.moon.client import Moon, contrastive, require_classifier
from fedwsa.algorithms.objective import LocalRun
from fedwsa.config.component import ConfigError
from fedwsa.config.places import options
from fedwsa.models import blank_inputs, build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from server.sizes import SizedModels
from server.strategy import build_strategy
from tests.given.shapes import an_example_for, small_option
from tests.given.training import data, local, net

ASKED = {"config": {"moon-mu": 2.0, "moon-temperature": 0.5}}


def test_the_loss_is_that_of_equation_3() -> None:
    # sim = 1 with the global, 0 with the previous one, τ = ½: −log(e²/(e² + e⁰)).
    z = torch.tensor([[3.0, 0.0]])
    near, far = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    expected = -math.log(math.exp(2) / (math.exp(2) + 1))
    assert contrastive(z, near, far, 0.5).tolist() == pytest.approx([expected], rel=1e-6)
    assert contrastive(z, far, near, 0.5).tolist() == pytest.approx([expected + 2], rel=1e-6)
    assert contrastive(z, near, near, 0.5).tolist() == pytest.approx([math.log(2)])


def features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model[:-1](x)


def test_a_step_follows_the_gradient_of_task_and_contrastive_loss() -> None:
    received, previous = net(), net()
    with torch.no_grad():
        for p in previous.parameters():
            p.add_(0.3 * torch.randn_like(p))
    model, by_hand = copy.deepcopy(received), copy.deepcopy(received)
    with torch.no_grad():  # away from the received model, so that the term has a gradient
        for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
            p.add_(0.1)
            q.add_(0.1)
    run = LocalRun(0.1, state={"moon": previous.state_dict()})
    moon = Moon(received, ASKED, run)
    x, y = data(16)
    with SinglePasses(received, [moon]) as passes:
        # It is made for the received weights; they move before the step is looked at.
        received.load_state_dict(model.state_dict())
        logits = received(x)
        task = nn.functional.cross_entropy(logits, y)
        (task + sum(passes.losses(x, y, logits, lambda z: z))).backward()

    z = features(by_hand, x)
    origin = net()
    with torch.no_grad():
        z_global, z_previous = features(origin, x), features(previous, x)
    near = cosine_similarity(z, z_global) / 0.5
    far = cosine_similarity(z, z_previous) / 0.5
    term = -torch.log(near.exp() / (near.exp() + far.exp())).mean()
    (nn.functional.cross_entropy(by_hand(x), y) + 2.0 * term).backward()
    for p, q in zip(received.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    assert features(by_hand, x).requires_grad
    assert term.item() != pytest.approx(math.log(2), rel=1e-3)


def test_a_client_s_first_training_is_fedavg_s_and_is_kept_for_the_next() -> None:
    plain, first = net(), net()
    settings = local(epochs=2)
    state: dict = {}

    def run(model: nn.Module, objectives: list) -> None:
        x, y = data(23)
        samples = Samples(x, y, lambda p: p, torch.Generator().manual_seed(0))
        train(model, samples, settings, Conditions.usual(settings), objectives)

    run(plain, [])

    def moon(model: nn.Module) -> Moon:
        return Moon(
            model, ASKED, LocalRun(0.1, state=state, trained=dict(model.named_parameters()))
        )

    one = moon(first)
    run(first, [one])
    assert one.end() == {}
    for (name, p), q in zip(plain.named_parameters(), first.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(state["moon"][name], p)
    # With a last model it differs from FedAvg, and leaves no hook on the network.
    again = net()
    run(again, [moon(again)])
    assert not torch.equal(again[0].weight, plain[0].weight)
    assert not any(m._forward_pre_hooks for m in again.modules())


class Headed(nn.Module):
    """Answers by a rule, from a hidden layer with as many units as there are classes, or not."""

    def __init__(self, head: Callable[[Headed, torch.Tensor], torch.Tensor], units: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, units), nn.Linear(units, 3)
        self.answer = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer(self, self.body(x.flatten(1)))


@pytest.mark.parametrize("units", [5, 3])
@pytest.mark.parametrize(
    ("head", "refused"),
    [
        (lambda m, z: m.head(torch.relu_(z)), False),
        (lambda m, z: nn.functional.log_softmax(m.head(z), 1), False),
        (lambda m, z: nn.functional.linear(z, m.head.weight, m.head.bias), True),
        (lambda m, z: m.head(z) + nn.functional.linear(z, m.head.weight), True),
        (lambda m, z: (m.head(z) + m.head(z.relu())) / 2, True),
    ],
)
def test_a_model_that_does_not_answer_by_its_last_linear_layer_is_refused(
    units: int, head: Callable[[Headed, torch.Tensor], torch.Tensor], refused: bool
) -> None:
    model = Headed(head, units)
    told = pytest.raises(ValueError, match="answers by a linear layer")
    with told if refused else nullcontext():
        require_classifier(model, torch.zeros(2, 1, 2, 2))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def convolution(image: ImageShape, classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(image[0], classes, image[1:]), nn.Flatten())


@pytest.mark.parametrize("mu", [1.0, 0.0])
def test_it_is_refused_before_round_1_where_it_counts(mu: float) -> None:
    words = ["strategy=moon", f"strategy.args.mu={mu}", f"model._target_={__name__}.convolution"]
    config = compose([*words, "~model.width", "~model.depth"])
    sizes = SizedModels.of(config, ImageShape(1, 4, 4), 3)
    told = pytest.raises(ConfigError, match=r"^strategy: MOON needs a model that answers by a lin")
    with told if mu else nullcontext():
        build_strategy(config, sizes)


@pytest.mark.parametrize("name", options("model"))
def test_our_models_answer_by_a_linear_layer(name: str) -> None:
    component = small_option(name)
    shape = an_example_for(component)
    model = build_model(component, shape, 10, 0).train()
    require_classifier(model, blank_inputs(shape, 2))
    assert model.training  # as it was
    assert not any(module._forward_hooks for module in model.modules())
