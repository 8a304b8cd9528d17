"""FjORD: ordered dropout, against networks of the drawn size."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedwsa.algorithms.divergence import divergence
from fedwsa.algorithms.fjord.client import OrderedDropout
from fedwsa.algorithms.fjord.server import FjORD
from fedwsa.algorithms.objective import ForwardPass, LocalRun, TrainedOn
from fedwsa.algorithms.run_facts import RunFacts
from fedwsa.config.component import Component
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.models.nested import Nested
from tests.given.sized_strategies import alternating, arrays, sent

pytestmark = pytest.mark.usefixtures("task_identity")

SHAPE = ImageShape(1, 4, 4)
LARGE = Component.of("fedwsa.models.mlp.mlp", width=0.04, depth=2)
X, Y = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
WIDTHS = {"S": 0.01, "M": 0.02}


def objective(model: torch.nn.Module, distill: bool, seed: int) -> OrderedDropout:
    def within(size: str) -> Nested:
        small = build_model(LARGE.replace(width=WIDTHS[size]), SHAPE, 3, 0)
        return Nested(small, model, {})

    samples = TrainedOn(X, Y, 3, lambda x: x, lambda _: torch.Generator().manual_seed(seed))
    told = {OrderedDropout.settings: {"sizes": ["S", "M"], "distill": distill}}
    return OrderedDropout(model, told, LocalRun(0.1, samples=samples, within=within))


def gradient(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("distill", [True, False])
def test_in_each_step_a_size_is_drawn_and_trained(distill: bool) -> None:
    """Seeds are drawn from until all sizes were: each step is one of three known ones."""
    model = build_model(LARGE, SHAPE, 3, 0)
    task = lambda: cross_entropy(model(X), Y, reduction="none")  # noqa: E731
    own = model(X).detach()
    possible = {"own": gradient(model, task())}
    for size, width in WIDTHS.items():
        part = Nested(build_model(LARGE.replace(width=width), SHAPE, 3, 0), model, {})
        logits = part(dict(model.named_parameters()), X)
        alone = cross_entropy(logits, Y, reduction="none")
        whole = task() + divergence(own, logits, 1.0) if distill else alone
        possible[size] = gradient(model, whole)
    drawn = set()
    for seed in range(12):
        one = objective(model, distill, seed)
        logits = model(X)
        seen = ForwardPass(X, Y, lambda: X, lambda name: X, logits, lambda z: z)
        found = gradient(model, cross_entropy(logits, Y, reduction="none") + one.loss(seen))
        alike = [
            name
            for name, expected in possible.items()
            if all(torch.allclose(found[k], expected[k], atol=1e-7) for k in found)
        ]
        assert len(alike) == 1
        drawn.update(alike)
    assert drawn == {"own", "S", "M"}


def test_clients_are_told_of_the_sizes_within_their_own() -> None:
    shapes = {"L": {"w": (4, 4)}, "M": {"w": (2, 4)}, "N": {"w": (4, 1)}, "S": {"w": (1, 1)}}
    strategy = FjORD(shapes, size_of=lambda node: "LMNS"[node - 1])
    found = sent(strategy, arrays(w=[[0.0] * 4] * 4), nodes=4)
    told = [list(m.content["fjord"]["sizes"]) if "fjord" in m.content else None for m in found]
    # N is not within M, though it is smaller.
    assert told == [["S", "N", "M"], ["S"], ["S"], None]


def test_with_one_size_nothing_is_asked_for() -> None:
    strategy = FjORD({"L": {"w": (2,)}}, size_of=lambda node: "L")
    assert all("fjord" not in m.content for m in sent(strategy, arrays(w=[0.0, 0.0])))


def test_recurrent_networks_have_no_parts() -> None:
    lstm = torch.nn.Sequential(torch.nn.LSTM(2, 2))
    run = RunFacts(
        **{f.name: None for f in fields(RunFacts)} | {"private": False, "models": {"S": lstm}}
    )
    with pytest.raises(ValueError, match="size S has a recurrent layer"):
        FjORD({"S": {"w": (2,)}}).require(run)


def test_it_has_no_scaler() -> None:
    with pytest.raises(ValueError, match="FjORD has none"):
        FjORD({"L": {"w": (2,)}}, scaler=True, size_of=alternating)
