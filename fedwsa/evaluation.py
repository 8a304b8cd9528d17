"""Accuracy and loss of a classifier, the same at the server and at the clients."""

from __future__ import annotations

from dataclasses import dataclass

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
