"""Accuracy and loss of a classifier, the same at the server and at the clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedwsa.data.examples import Examples, LabelledData
from fedwsa.moments import precise


@dataclass(frozen=True)
class Score:
    """How well a model does on ``examples`` samples: means over their labels."""

    accuracy: float
    loss: float
    examples: int


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: Examples, data: LabelledData, device: str, batch_size: int
) -> Score:
    """Score a model on examples of a data set.

    A sequence has a label at each position: its accuracy and loss are per position. Without
    samples, both are zero.
    """
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
