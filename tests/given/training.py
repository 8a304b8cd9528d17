"""A small network, its data and how it is trained."""

from __future__ import annotations

import torch
from torch import nn

from fedwsa.schema.compose import compose
from fedwsa.schema.sections import Local


def local(**changes: object) -> Local:
    return compose().local.model_copy(update=changes)


def data(n: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=random), torch.randint(0, 3, (n,), generator=random)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
