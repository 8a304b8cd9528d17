"""The networks of ``conf/model`` in double precision, in which runs can be compared.

In single precision the last digit decides which of two nearly equal units is the larger, and so
where a gradient goes: two ways to add up one sum may lead apart, and nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor, nn

from fedwsa.models import cnn as cnns
from fedwsa.models.mlp import mlp as single_mlp
from fedwsa.models.resnet import resnet as single_resnet
from fedwsa.models.vit import vit as single_vit

Builder = Callable[..., nn.Module]


def _widened(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() for x in inputs)


def _double(builder: Builder) -> Builder:
    @wraps(builder)  # also what is known of the network
    def built(*shape: Any, **keys: Any) -> nn.Module:
        model = builder(*shape, **keys).double()
        model.register_forward_pre_hook(_widened)
        return model

    return built


mlp, resnet, vit = (_double(builder) for builder in (single_mlp, single_resnet, single_vit))
cnn, cnn_pfl = (_double(getattr(cnns, name)) for name in ("cnn", "cnn_pfl"))
