"""The diagonal of a network's Fisher information: how sure it is of each of its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from fedwsa.scope.moments import precise

logger = logging.getLogger("fedwsa")

_GRADIENT_BYTES = 24 << 20
"""Per-sample gradients that are held at once; more are slower, being new memory each time."""

_MOST = 64
"""Samples that are prepared at once."""


def fisher_information(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor | None = None,
    *,
    random: torch.Generator | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Mean squared gradient of each sample's loss: F_j = 1/N · Σ_i (∂ℓ_i/∂θ_j)².

    ℓ_i is the cross-entropy of sample i, for a sequence its mean over the positions, as it was
    trained. Each sample is squared for itself: the square of a batch's mean gradient is another
    number, and near zero in a minimum.

    The model is put into evaluation mode and stays there: dropout is off, BatchNorm uses its
    running statistics, without which a sample has no gradient of its own.

    Source: arXiv 2111.09832 (labels drawn from the model), arXiv 2310.12808. Networks that torch
    cannot differentiate for many samples at once (LSTM) are taken sample by sample, which is slow.

    Parameters
    ----------
    model
        A classifier.
    inputs
        N samples.
    labels
        Those that were observed, ``(N,)`` or ``(N, T)``, which gives the empirical Fisher. None:
        drawn from the model's own prediction by ``random``, one a sample, which estimates the
        Fisher information proper without bias.
    random
        A CPU generator.
    prepare
        Makes the model's inputs of some samples, see :class:`fedwsa.data.examples.LabelledData`;
        None: they are that already.
    chunk
        How many samples at once. Default: as many as have 24 MiB of gradients, at most 64.

    Returns
    -------
    dict of str to Tensor
        For each parameter, frozen ones too, a tensor of its shape, of half precision in single;
        buffers have none.

    Raises
    ------
    ValueError
        If there are no samples, neither labels nor a generator, or a BatchNorm has no running
        statistics.
    """
    if not len(inputs):
        raise ValueError("there are no samples to take the Fisher information of")
    if labels is None and random is None:
        raise ValueError("labels that are drawn from the model need a generator")
    _require_running_statistics(model)
    model.eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    device = next(iter(parameters.values())).device
    squares = _Squares(model, parameters)
    size = chunk or _chunk(parameters)
    for start in range(0, len(inputs), _MOST):
        part = slice(start, start + _MOST)
        x = inputs[part].to(device)
        x = x if prepare is None else prepare(x)
        y = (_drawn(model, x, random) if labels is None else labels[part]).to(device)
        for few in range(0, len(x), size):
            squares.add(x[few : few + size], y[few : few + size])
    return {name: total / len(inputs) for name, total in squares.totals.items()}


class _Squares:
    """Sums of squared per-sample gradients."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        def loss(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            logits = functional_call(model, dict(parameters), (x[None],))
            return cross_entropy(precise(logits), y[None])

        self._parameters = parameters
        self._alone = grad(loss)
        self._together = vmap(self._alone, in_dims=(None, 0, 0))
        self._stackable = not any(isinstance(m, nn.RNNBase) for m in model.modules())
        self.totals = {name: torch.zeros_like(precise(p)) for name, p in parameters.items()}

    def add(self, x: Tensor, y: Tensor) -> None:
        if self._stackable:
            try:
                self._sum(self._together(self._parameters, x, y))
                return
            except RuntimeError as error:  # of a stranger's layer, or of memory
                reason = " ".join(str(error).split())
                logger.info("Fisher information is taken sample by sample: %s", reason)
                self._stackable = False
        for one, label in zip(x, y, strict=True):
            alone = self._alone(self._parameters, one, label)
            self._sum({name: gradient[None] for name, gradient in alone.items()})

    def _sum(self, gradients: Mapping[str, Tensor]) -> None:
        # Not squared in place: two biases of a layer may have one gradient.
        totals = list(self.totals.values())
        for each in zip(*(precise(gradients[name]) for name in self.totals), strict=True):
            torch._foreach_addcmul_(totals, each, each)


def _chunk(parameters: Mapping[str, Tensor]) -> int:
    size = sum(p.numel() * p.element_size() for p in parameters.values())
    return min(max(1, _GRADIENT_BYTES // size), _MOST)


@torch.no_grad()
def _drawn(model: nn.Module, x: Tensor, random: torch.Generator | None) -> Tensor:
    """A label for each sample, or each position, by what the model predicts."""
    chances = precise(model(x)).softmax(1).movedim(1, -1).cpu()
    classes = chances.shape[-1]
    drawn = torch.multinomial(chances.reshape(-1, classes), 1, generator=random)
    return drawn.view(chances.shape[:-1])


def _require_running_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name} normalises by the statistics of the batch, so that no sample has a "
                "gradient of its own; it needs track_running_stats=True"
            )
