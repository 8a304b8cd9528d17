"""Accuracy and loss of a classifier, the same at the server and at the clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedwsa.data.examples import Examples, LabelledData, batch_sizes
from fedwsa.models.batch_norm import reestimate
from fedwsa.models.norms import StaticBatchNorm2d, static_norms
from fedwsa.scope.moments import precise

_LOOKED_AT, _AT_ONCE = 5000, 128  # not evaluation.batch_size: a score must not depend on it


@dataclass(frozen=True)
class Score:
    """How well a model does on ``examples`` samples: means over their labels."""

    accuracy: float
    loss: float
    examples: int


def measure_statistics(
    model: nn.Module,
    inputs: Tensor,
    prepare: Callable[[Tensor], Tensor],
    device: str | torch.device,
) -> None:
    """Measure the statistics of a network's static norms on training inputs, in place.

    Parameters
    ----------
    model
        On ``device``. Without such norms it is left as it is.
    inputs
        As stored, in random order; the first 5000 are looked at, in batches of 128.
    prepare
        Inputs as stored → inputs of the network.

    Raises
    ------
    ValueError
        If there are no inputs.
    """

    def batches() -> Iterator[Tensor]:
        chosen = inputs[:_LOOKED_AT]
        for part in torch.split(chosen, batch_sizes(len(chosen), _AT_ONCE)):
            if len(part):
                yield prepare(part.to(device))

    reestimate(model, batches(), StaticBatchNorm2d)


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: Examples, data: LabelledData, device: str, batch_size: int
) -> Score:
    """Score a model on examples of a data set.

    A sequence has a label at each position: its accuracy and loss are per position. Without
    samples, both are zero.

    Raises
    ------
    ValueError
        If statistics of a static norm were not measured: scores would go by the batches.
    """
    unmeasured = [name for name, norm in static_norms(model).items() if not norm.measured]
    if unmeasured and len(examples):
        raise ValueError(f"{unmeasured[0]}: its statistics are not measured yet")
    model.eval()
    hits, loss = 0, 0.0
    for inputs, truth in zip(
        torch.split(examples.inputs, batch_size),
        torch.split(examples.labels, batch_size),
        strict=True,
    ):
        logits = precise(model(data.prepare(inputs.to(device))))
        target = truth.to(device)
        hits += int((logits.argmax(1) == target).sum())
        loss += float(cross_entropy(logits, target, reduction="sum"))
    n = examples.labels.numel()
    return Score(hits / n, loss / n, len(examples)) if n else Score(0.0, 0.0, 0)


def jain_index(values: Sequence[float]) -> float:
    """Jain's fairness index, (Σx)²/(n·Σx²): 1 if all are equal, 1/n if one has everything.

    Zeros alone are equal: 1.

    Source: Jain, Chiu, Hawe: A quantitative measure of fairness, DEC-TR-301, 1984.
    """
    x = np.asarray(values, np.float64)
    squares = float(x @ x)
    return float(x.sum() ** 2 / (len(x) * squares)) if squares else 1.0
