"""MOON's model-contrastive loss, the client half of :class:`fedwsa.algorithms.moon.server.Moon`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, softplus

from fedwsa.algorithms.objective import ForwardPass, LocalRun, Objective, Others, Weights
from fedwsa.models.representation import linear_layers
from fedwsa.wire.content import Content, find_record
from fedwsa.wire.names import MOON_TEMPERATURE, MOON_WEIGHT

_STATE = "moon"
_NEEDS = (
    "MOON needs a model that answers by a linear layer (torch.nn.Linear): it compares what goes in"
)


def contrastive(z: Tensor, z_global: Tensor, z_previous: Tensor, temperature: float) -> Tensor:
    """−log[ e^{sim(z, z_glob)/τ} / (e^{sim(z, z_glob)/τ} + e^{sim(z, z_prev)/τ}) ]: ``(N, …)``.

    Parameters
    ----------
    z, z_global, z_previous
        Representations by the model in training, the received one, and the client's last one;
        shape ``(N, …, features)``.
    temperature
        τ; sim is the cosine.

    Source: arXiv 2103.16257, equation 3.
    """
    near = cosine_similarity(z, z_global, dim=-1) / temperature
    far = cosine_similarity(z, z_previous, dim=-1) / temperature
    return softplus(far - near)


class Moon(Objective):
    """Keep representations near those of the received model, and off those of the last local one.

    Local loss = task loss + μ·contrastive loss, where a representation is what goes into the
    classifier, the last linear layer (the paper adds a projection head for it; ours does
    without). A client that takes part for the first time has no last model: it trains without
    the term, whose gradient would be zero with the received model in its place. (The authors' code
    contrasts it from round 2 on with its own initial network; ours does not.)

    Source: Model-Contrastive Federated Learning, arXiv 2103.16257.
    """

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        config = find_record(content, MOON_WEIGHT)
        if config is None or local is None:
            raise ValueError("MOON needs its weight μ and the state of the client")
        self.mu = float(config[MOON_WEIGHT])
        self.temperature = float(config[MOON_TEMPERATURE])
        self._local = local

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server announced μ."""
        return find_record(content, MOON_WEIGHT) is not None

    def others(self) -> Others | None:
        """The received model and the client's last one; None for a client without."""
        last = self._local.state.get(_STATE)
        return {"received": {}, "previous": last} if last is not None and self.mu else None

    def loss(self, seen: ForwardPass) -> Tensor:
        """μ times the contrastive loss of each sample."""
        near, far = seen.represented_by("received"), seen.represented_by("previous")
        return self.mu * contrastive(seen.represented(), near, far, self.temperature)

    @torch.no_grad()
    def end(self) -> dict[str, float | list[float]]:
        """Keep the trained model as the client's last one."""
        trained = self._local.trained
        self._local.state[_STATE] = {name: tensor.clone() for name, tensor in trained.items()}
        return {}


def require_classifier(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a model whose answer is not made from that of the linear layer that it calls last.

    Raises
    ------
    ValueError
        If it calls none, one with other outputs than there are classes, or weights beside it.
    """
    made: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        made.append(output.detach().requires_grad_())
        return made[-1].clone()  # what comes next may change it in place

    hooks = [layer.register_forward_hook(cut) for layer in linear_layers(model)]
    mode = model.training
    try:
        with torch.enable_grad():
            answer = model.eval()(inputs)
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    if not made or made[-1].shape[-1] != answer.shape[1] or not answer.requires_grad:
        raise ValueError(_NEEDS)
    sources = [made[-1], *made[:-1], *(p for p in model.parameters() if p.requires_grad)]
    through, *around = torch.autograd.grad(answer.sum(), sources, allow_unused=True)
    if through is None or any(gradient is not None for gradient in around):
        raise ValueError(_NEEDS)
