"""How far the weight scopes of a client's model are from those of the other clients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.app import RecordDict
from torch import Tensor

from fedwsa.scope.moments import moments
from fedwsa.scope.weight_scope import DEFAULT_FLOOR, fan_in, kl_divergence, scoped_layers
from fedwsa.wire import messages


def scopes_apart(contents: Sequence[RecordDict]) -> list[tuple[str, float]]:
    """Of each client the layer whose scope is furthest from the cohort's median, and how far.

    The median of the means and of the variances of a layer, over the clients that have it. They
    are measured on the models that came: what a client reports of itself plays no part.

    Returns
    -------
    list of (str, float)
        Layer, and KL(client's ‖ median) in nats; 0 where a model has no layer with a scope.
    """
    measured = [_scopes(content) for content in contents]
    medians = {
        name: _median([scopes[name] for scopes in measured if name in scopes])
        for name in dict.fromkeys(name for scopes in measured for name in scopes)
    }
    found = []
    for scopes in measured:
        apart = {name: _apart(scope, medians[name]) for name, scope in scopes.items()}
        furthest = max(apart, key=apart.__getitem__, default="")
        found.append((furthest, apart.get(furthest, 0.0)))
    return found


def _scopes(content: RecordDict) -> dict[str, Tensor]:
    """Mean and variance of each layer, normalised by what its units read, shape ``(2,)``."""
    arrays = messages.model_arrays(content)
    if arrays is None:
        return {}
    tensors = messages.to_tensors(arrays)
    try:
        names = scoped_layers(tensors)
    except ValueError:  # there are none
        return {}
    layers = [tensors[name] for name in names]
    mean, variance = (found.double().cpu() for found in moments(layers))
    reads = fan_in(layers)  # normalised, so that clients of several sizes compare
    mean, variance = mean * reads.sqrt(), variance * reads
    return dict(zip(names, torch.stack([mean, variance], 1), strict=True))


def _median(scopes: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(scopes)).quantile(0.5, dim=0)


def _apart(scope: Tensor, median: Tensor) -> float:
    return float(kl_divergence(scope[0], scope[1], median[0], median[1], DEFAULT_FLOOR))
