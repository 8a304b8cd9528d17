"""BatchNorm's statistics, measured anew on data: those of a merged network are of no network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate(
    model: nn.Module, batches: Iterable[Tensor], kind: type[_BatchNorm] = _BatchNorm
) -> bool:
    """Measure the running statistics of a network on data, in place.

    Each becomes the plain mean over the batches of what a batch shows (torch's
    ``momentum=None``), so batches should be of one size. Only norms are in training meanwhile:
    dropout, which ``torch.optim.swa_utils.update_bn`` lets act, would change what they see.

    Parameters
    ----------
    model
        Its norms' training mode and momentum are as before when this returns. One without
        statistics is left as it is, and no batch is drawn.
    batches
        Inputs of the network, on its device.
    kind
        Of the norms that are measured; others keep what they have.

    Returns
    -------
    bool
        Whether the network has statistics.

    Raises
    ------
    ValueError
        If it has, and there is no batch.

    References
    ----------
    Stochastic Weight Averaging, arXiv 1803.05407, section 3.2.
    """
    norms = [m for m in model.modules() if isinstance(m, kind) and m.track_running_stats]
    if not norms:
        return False
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    seen = False
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = cast(float, None)  # the cumulative mean; torch's stubs lack it
            norm.train()
        for inputs in batches:
            model(inputs)
            seen = True
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    if not seen:
        raise ValueError("BatchNorm's statistics need at least one batch to be measured on")
    return True
