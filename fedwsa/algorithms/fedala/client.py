"""FedALA, the client half of :class:`fedwsa.algorithms.fedala.server.FedALA`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedwsa.algorithms.objective import LocalRun, Objective, State, TrainedOn, Weights, trainable
from fedwsa.wire.content import Content

_PARTS = "fedala parts"
_BATCH = 64
_RECENT, _STILL, _MOST = 10, 0.1, 100  # epochs, deviation of their losses, epochs at most


class AdaptiveLocalAggregation(Objective):
    """Begin between the client's last model and the received one: w_i + (w − w_i) ⊙ A.

    A, of each weight of the highest layers, is learned on a part of the client's samples by
    A ← A − η·∇f ⊙ (w − w_i), kept in [0, 1]: until the loss stands still in the first round in
    which there is a last model, later in one pass. The layers below are as received.

    Source: arXiv 2212.01197, algorithm 1.
    """

    settings: ClassVar[str] = "fedala"
    stackable: ClassVar[bool] = False

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if local is None or local.samples is None or not isinstance(model, nn.Module):
            raise ValueError("FedALA needs a model, and the client's samples and state")
        self._local = local
        self.settle(model, content, local.state, local.samples)

    @classmethod
    def settle(cls, model: nn.Module, content: Content, state: State, samples: TrainedOn) -> None:
        """Put the weights where training and evaluation begin; what was learned goes into state."""
        last, told = state.get(cls.settings), content[cls.settings]
        if not last or not len(samples.labels):
            return
        high = {name: w for name, w in trainable(model).items() if name in told["high"]}
        if not high:
            return
        received = {name: w.detach().clone() for name, w in high.items()}
        away = {name: w - last[name].to(w) for name, w in received.items()}
        known = state.get(_PARTS, {})
        parts = {k: known.get(k, torch.ones_like(w)).to(w).clone() for k, w in received.items()}
        _put(high, received, away, parts)
        chosen = _part(samples, float(told["samples"]))
        losses: list[float] = []
        model.train()
        while float(told["rate"]) and len(losses) < (1 if known else _MOST):
            losses.append(_epoch(model, samples, chosen, high, received, away, parts, told["rate"]))
            recent = torch.tensor(losses[-_RECENT:])
            if len(recent) == _RECENT and float(recent.std()) < _STILL:
                break
        state[_PARTS] = parts

    @torch.no_grad()
    def end(self) -> dict[str, float | list[float]]:
        """Keep the trained model as the client's last one."""
        trained = self._local.trained
        self._local.state[self.settings] = {
            name: tensor.clone() for name, tensor in trained.items()
        }
        return {}


def _part(samples: TrainedOn, share: float) -> Tensor:
    """Which samples the parts are learned on."""
    count = len(samples.labels)
    order = torch.randperm(count, generator=samples.generator("fedala"))
    return order[: max(1, round(share * count))].to(samples.labels.device)


def _epoch(
    model: nn.Module,
    samples: TrainedOn,
    chosen: Tensor,
    high: dict[str, Tensor],
    received: dict[str, Tensor],
    away: dict[str, Tensor],
    parts: dict[str, Tensor],
    rate: float,
) -> float:
    """A pass of learning the parts, which moves the model along; the mean loss."""
    total = 0.0
    for inputs, labels in samples.batches(_BATCH, chosen):
        loss = cross_entropy(model(inputs).float(), labels)
        found = torch.autograd.grad(loss, list(high.values()))
        with torch.no_grad():
            for name, gradient in zip(high, found, strict=True):
                parts[name].sub_(rate * gradient * away[name]).clamp_(0.0, 1.0)
        _put(high, received, away, parts)
        total += float(loss.detach()) * len(labels)
    return total / len(chosen)


@torch.no_grad()
def _put(
    high: dict[str, Tensor],
    received: dict[str, Tensor],
    away: dict[str, Tensor],
    parts: dict[str, Tensor],
) -> None:
    for name, weight in high.items():
        weight.copy_(received[name] - away[name] * (1 - parts[name]))
