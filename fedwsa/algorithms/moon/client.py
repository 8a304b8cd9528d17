"""MOON's model-contrastive loss, the client half of :class:`fedwsa.algorithms.moon.server.Moon`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, softplus

from fedwsa.algorithms.objective import LocalRun, Objective, Weights
from fedwsa.models import exchange
from fedwsa.models.attributes import copied
from fedwsa.wire.content import Content, find_record
from fedwsa.wire.names import MOON_TEMPERATURE, MOON_WEIGHT

_STATE = "moon"
_NEEDS = (
    "MOON needs a model that answers by a linear layer (torch.nn.Linear): it compares what goes in"
)


def contrastive(z: Tensor, z_global: Tensor, z_previous: Tensor, temperature: float) -> Tensor:
    """−log[ e^{sim(z, z_glob)/τ} / (e^{sim(z, z_glob)/τ} + e^{sim(z, z_prev)/τ}) ], the mean.

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
    return softplus(far - near).mean()


class Moon(Objective):
    """Keep representations near those of the received model, and off those of the last local one.

    Local loss = task loss + μ·contrastive loss, where a representation is what goes into the
    classifier, the last linear layer (the paper adds a projection head for it; ours does
    without). A client that takes part for the first time has no last model: it trains without
    the term, whose gradient would be zero with the received model in its place. (The authors' code
    contrasts it from round 2 on with its own initial network; ours does not.)

    Source: Model-Contrastive Federated Learning, arXiv 2103.16257.
    """

    stackable = False

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        config = find_record(content, MOON_WEIGHT)
        if config is None or local is None or not isinstance(model, nn.Module):
            raise ValueError("MOON needs its weight μ, a model and the state of the client")
        self.mu = float(config[MOON_WEIGHT])
        self.temperature = float(config[MOON_TEMPERATURE])
        self._local, self._model = local, model
        last = local.state.get(_STATE)
        if last is None or not self.mu:
            self._others: list[tuple[nn.Module, _Tap]] = []
            return
        received, previous = copied(model).eval(), copied(model).eval()
        previous.load_state_dict(last, strict=False)
        self._others = [(m, _Tap(m)) for m in (received, previous)]
        self._tap = _Tap(model)

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server announced μ."""
        return find_record(content, MOON_WEIGHT) is not None

    def loss(self, inputs: Tensor) -> Tensor:
        """μ times the contrastive loss of a batch; zero for a client without a last model."""
        if not self._others:
            return inputs.new_zeros((), dtype=torch.float32, requires_grad=True)
        with torch.no_grad():
            for model, _ in self._others:
                model(inputs)
        received, previous = (tap.take() for _, tap in self._others)
        return self.mu * contrastive(self._tap.take(), received, previous, self.temperature)

    @torch.no_grad()
    def end(self) -> dict[str, float | list[float]]:
        """Keep the trained model as the client's last one."""
        if self._others:
            self._tap.remove()
        state = exchange.travelling_state(self._model)
        self._local.state[_STATE] = {name: tensor.clone() for name, tensor in state.items()}
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

    hooks = [layer.register_forward_hook(cut) for layer in _linear(model)]
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


def _linear(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


class _Tap:
    """Catches what goes into the last linear layer of a model, by the order of calls."""

    def __init__(self, model: nn.Module) -> None:
        self._caught: Tensor | None = None
        self._hooks = [layer.register_forward_pre_hook(self._catch) for layer in _linear(model)]

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._caught = inputs[0]

    def take(self) -> Tensor:
        """What was caught last, in single precision."""
        if self._caught is None:
            raise ValueError(_NEEDS)
        return self._caught.float()

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
