"""What is measured of a pair: the line between its networks, as they are and aligned."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from experiments.connectivity.schema import ConnectivityConfig
from fedwsa import seeding
from fedwsa.data.evaluation import Score, evaluate
from fedwsa.data.examples import LabelledData
from fedwsa.merge.connectivity import Path, walk
from fedwsa.merge.permutation import align
from fedwsa.merge.states import State
from fedwsa.models.architecture import Units
from fedwsa.models.batch_norm import reestimate
from fedwsa.scope.rescale import rescale_gaussian
from fedwsa.scope.weight_scope import WeightScope, kl_divergence

TREATMENTS = ("plain", "rescale", "permutation", "permutation_rescale")
"""What is done to A and B first; ``rescale`` brings both to their fused scope."""

_BATCH = 128
_AT_ONCE = 512


def ends(a: State, b: State, treatment: str, units: Units, seed: int) -> tuple[State, State]:
    """The ends of the line: A and B, treated."""
    if treatment.startswith("permutation"):
        b = align(b, a, units, seed)
    if treatment.endswith("rescale"):
        target = WeightScope.fuse([WeightScope.measure(a), WeightScope.measure(b)])
        return rescale_gaussian(a, target), rescale_gaussian(b, target)
    return a, b


def divergence(a: State, b: State, floor: float) -> float:
    """How far the scopes of two networks are apart: Σ_l ½ (KL(A‖B) + KL(B‖A))."""
    one, other = WeightScope.measure(a), WeightScope.measure(b)
    there = kl_divergence(one.mean, one.variance, other.mean, other.variance, floor)
    back = kl_divergence(other.mean, other.variance, one.mean, one.variance, floor)
    return float((there + back).sum() / 2)


class Scorer:
    """Scores a state on the test set, BatchNorm's statistics measured on training images."""

    def __init__(self, model: nn.Module, data: LabelledData, batches: int, device: str) -> None:
        self.model, self.data, self.device = model.to(device), data, device
        order = torch.randperm(len(data.train), generator=seeding.generator(0, "statistics"))
        parts = [part for part in torch.split(order, _BATCH) if len(part) == _BATCH]
        self._chosen = parts[:batches] or [order]

    def __call__(self, state: State) -> Score:
        """How well it does."""
        self.model.load_state_dict(dict(state))
        reestimate(self.model, self._inputs())
        return evaluate(self.model, self.data.test, self.data, self.device, _AT_ONCE)

    def _inputs(self) -> Iterator[Tensor]:
        for chosen in self._chosen:
            yield self.data.prepare(self.data.train.inputs[chosen].to(self.device))


def measure(
    states: list[State], scorer: Scorer, config: ConnectivityConfig, units: Units, seed: int
) -> Iterator[tuple[str, float, Path]]:
    """Treatment, divergence of the scopes of the ends, and the line between them."""
    for treatment in TREATMENTS:
        a, b = ends(states[0], states[1], treatment, units, seed)
        yield treatment, divergence(a, b, config.wsa.floor), walk(a, b, scorer, config.points)
