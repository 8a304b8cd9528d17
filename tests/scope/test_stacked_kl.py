"""The closed form over stacks: as client by client."""

from __future__ import annotations

import pytest
import torch

from fedwsa.scope.moments import moments, stacked_moments
from fedwsa.scope.weight_scope import WeightScope, add_kl_gradient_

SHAPES = ((6, 4), (3, 2, 5), (7,))


def stacks(count: int = 4) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    found = [torch.randn(count, *shape, generator=draw) for shape in SHAPES]
    found[0][1] *= 1e-6  # a layer below the floor
    return found


def test_moments_of_a_stack_are_those_of_its_tensors() -> None:
    mean, variance = stacked_moments(stacks())
    for k in range(4):
        one = moments([stack[k] for stack in stacks()])
        torch.testing.assert_close(mean[:, k], one[0], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(variance[:, k], one[1], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("reduction", ["layer", "entries"])
def test_the_gradient_of_a_stack_is_that_of_its_tensors(reduction) -> None:
    target = WeightScope(("a", "b", "c"), torch.tensor([0.1, 0.0, -0.2]), torch.full((3,), 0.5))
    whole = [torch.ones_like(stack) for stack in stacks()]
    options = {"reduction": reduction, "floor": 1e-4}
    add_kl_gradient_(whole, stacks(), target, 3.0, **options, stacked=True)
    for k in range(4):
        one = [torch.ones_like(stack[k]) for stack in stacks()]
        add_kl_gradient_(one, [stack[k] for stack in stacks()], target, 3.0, **options)
        for stack, alone in zip(whole, one, strict=True):
            torch.testing.assert_close(stack[k], alone, rtol=1e-5, atol=1e-6)
