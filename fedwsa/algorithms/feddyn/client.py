"""FedDyn's dynamic regulariser."""

from __future__ import annotations

import torch
from torch import Tensor

from fedwsa.algorithms.objective import LocalRun, Objective, Weights, gradients, trainable
from fedwsa.wire.content import Content, find_record
from fedwsa.wire.names import DYN_ALPHA, DYN_COUNT, DYN_PULL

_STATE = "feddyn"


class FedDyn(Objective):
    """Local loss = L_k(w) − ⟨g_k, w⟩ + (α/2)·‖w − w_g‖², with g_k = ∇L_k at the last solution.

    g_k starts at zero, stays with the client, and becomes g_k − α(w − w_g): the gradient of L_k
    where the local loss is at its minimum.

    What other objectives add that is not of L_k (:attr:`LocalRun.pulls`, WSA's term for instance)
    is kept out of g_k: with its gradient p_k where the training ended, g_k − α(w − w_g) − p_k. In
    g_k the next round would cancel it. p_k goes to the server, for h is the mean of all g_k (ours).
    At rest all clients are where mean ∇L_k + p = 0, and the server's model lies p/α beside that.

    Source: arXiv 2111.04263, algorithm 1.
    """

    @torch.no_grad()
    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        config = find_record(content, DYN_ALPHA)
        if config is None or local is None:
            raise ValueError("FedDyn needs α and the state of the client")
        self.alpha = float(config[DYN_ALPHA])
        self._local, self._named = local, trainable(model)
        self._weights: list[Tensor] = list(self._named.values())
        self._received = [w.detach().clone() for w in self._weights]
        kept = local.state.get(_STATE, {})
        self._own = [
            kept[name].to(w.device) if name in kept else torch.zeros_like(w)
            for name, w in self._named.items()
        ]
        self._pull: dict[str, Tensor] = {}

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server announced α."""
        return find_record(content, DYN_ALPHA) is not None

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add −g_k + α(w − w_g)."""
        added = gradients(self._weights)
        torch._foreach_add_(added, self._drift(), alpha=self.alpha)
        torch._foreach_sub_(added, self._own)

    @torch.no_grad()
    def end(self) -> dict[str, float | list[float]]:
        """Renew g_k, the client's gradient at its solution."""
        renewed = torch._foreach_sub(self._own, self._drift(), alpha=self.alpha)
        if (pull := self._local.pull(self._named)) is not None:
            torch._foreach_sub_(renewed, pull)
            self._pull = dict(zip(self._named, pull, strict=True))
        self._local.state[_STATE] = dict(zip(self._named, renewed, strict=True))
        return {DYN_COUNT: 1.0}

    def records(self) -> dict[str, dict[str, Tensor]]:
        """p_k, where there is one."""
        return {DYN_PULL: self._pull} if self._pull else {}

    def _drift(self) -> list[Tensor]:
        return list(torch._foreach_sub(self._weights, self._received))
