"""Accuracy and loss of a classifier, the same at the server and at the clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedwsa.data.images import ImageData, normalise


@dataclass(frozen=True)
class Score:
    """How well a model does on ``examples`` samples."""

    accuracy: float
    loss: float
    examples: int


@torch.no_grad()
def evaluate(
    model: nn.Module, pixels: Tensor, labels: Tensor, data: ImageData, device: str, batch_size: int
) -> Score:
    """Score a model on uint8 pixels ``(N, C, H, W)`` and labels ``(N,)``.

    ``data`` gives the statistics for normalising. Without samples, accuracy and loss are zero.
    """
    model.eval()
    hits, loss = 0, 0.0
    for images, truth in zip(
        torch.split(pixels, batch_size), torch.split(labels, batch_size), strict=True
    ):
        logits = model(normalise(images.to(device), data.mean, data.std))
        target = truth.to(device)
        hits += int((logits.argmax(1) == target).sum())
        loss += float(cross_entropy(logits, target, reduction="sum"))
    n = len(labels)
    return Score(hits / n, loss / n, n) if n else Score(0.0, 0.0, 0)


def jain_index(values: Sequence[float]) -> float:
    """Jain's fairness index, (Σx)²/(n·Σx²): 1 if all are equal, 1/n if one has everything.

    Zeros alone are equal: 1.

    Source: Jain, Chiu, Hawe: A quantitative measure of fairness, DEC-TR-301, 1984.
    """
    x = np.asarray(values, np.float64)
    squares = float(x @ x)
    return float(x.sum() ** 2 / (len(x) * squares)) if squares else 1.0
