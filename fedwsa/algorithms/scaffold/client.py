"""SCAFFOLD's local correction."""

from __future__ import annotations

import torch
from torch import Tensor

from fedwsa.algorithms.objective import LocalRun, Objective, Weights, gradients, trainable
from fedwsa.wire.content import Content
from fedwsa.wire.names import SCAFFOLD_CHANGE, SCAFFOLD_CONTROL

_STATE = "scaffold"


class Scaffold(Objective):
    """Correct each local gradient by the difference of the control variates: g + c − c_i.

    After K steps of size η, c_i⁺ = c_i − c + (w_g − w_i)/(K·η) (option II), which is the mean of
    the client's own gradients; c_i⁺ − c_i goes to the server. All start at zero; c_i stays with
    the client.

    What other objectives add that is not of the client's loss (:attr:`LocalRun.pulls`, WSA's term
    for instance) is kept out of c_i: its mean over the path is taken off. In c_i it would be
    cancelled by the correction, and each client be pulled by the mean of the pulls (ours).

    Under momentum m, a constant gradient moves the weights as far as
    Σ_{j=1}^K (1 − m^j)/(1 − m) plain steps would: that sum stands for K (ours; the paper has
    plain SGD).

    Source: arXiv 1910.06378, algorithm 1.
    """

    @torch.no_grad()
    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        server = content.get(SCAFFOLD_CONTROL)
        if server is None or local is None:
            raise ValueError("SCAFFOLD needs the server's variate, and the client's rate and state")
        self._local, self._named = local, trainable(model)
        if missing := [name for name in self._named if name not in server]:
            raise ValueError(f"the server's control variates lack {missing[0]}")
        self._weights = list(self._named.values())
        self._received = [w.detach().clone() for w in self._weights]
        self._server: list[Tensor] = [server[name].to(w.device) for name, w in self._named.items()]
        kept = local.state.get(_STATE, {})
        self._own: list[Tensor] = [
            kept[name].to(w.device) if name in kept else torch.zeros_like(w)
            for name, w in self._named.items()
        ]
        self._correction = torch._foreach_sub(self._server, self._own)
        # Of the pulls, as an optimiser that follows them alone: its momentum, and its way.
        self._velocity: list[Tensor] | None = None
        self._way: list[Tensor] | None = None
        self._steps = 0
        self._change: dict[str, Tensor] = {}

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server sent its control variates."""
        return SCAFFOLD_CONTROL in content

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add c − c_i."""
        torch._foreach_add_(gradients(self._weights), self._correction)
        self._steps += 1
        self._follow(self._local.pull(self._named))

    def _follow(self, pull: list[Tensor] | None) -> None:
        """v ← m·v + p, way ← way + v: what the pulls have of w_g − w_i, by η."""
        if pull is None:
            return
        if self._velocity is None or self._way is None:
            self._velocity, self._way = pull, [p.clone() for p in pull]
            return
        torch._foreach_mul_(self._velocity, self._local.momentum)
        torch._foreach_add_(self._velocity, pull)
        torch._foreach_add_(self._way, self._velocity)

    @torch.no_grad()
    def end(self) -> dict[str, float | list[float]]:
        """Renew the client's control variate."""
        if not self._steps:
            return {}
        steps = plain_steps(self._steps, self._local.momentum)
        # c_i⁺ − c_i = −c + (w_g − w_i)/(K·η), less the pulls' mean
        change = torch._foreach_sub(self._received, self._weights)
        torch._foreach_div_(change, steps * self._local.lr)
        if self._way is not None:
            torch._foreach_sub_(change, torch._foreach_div(self._way, steps))
        torch._foreach_sub_(change, self._server)
        renewed = torch._foreach_add(self._own, change)
        self._local.state[_STATE] = dict(zip(self._named, renewed, strict=True))
        self._change = dict(zip(self._named, change, strict=True))
        return {}

    def records(self) -> dict[str, dict[str, Tensor]]:
        """c_i⁺ − c_i, for the server."""
        return {SCAFFOLD_CHANGE: self._change}


def plain_steps(steps: int, momentum: float) -> float:
    """How many steps without momentum go as far as ``steps`` with it, under a constant gradient."""
    return sum((1 - momentum**j) / (1 - momentum) for j in range(1, steps + 1))
