"""What a client of FedNova reports; see :class:`fedwsa.algorithms.fednova.server.FedNova`."""

from __future__ import annotations

from fedwsa.algorithms.objective import LocalRun, Objective, Weights
from fedwsa.algorithms.scaffold.client import plain_steps
from fedwsa.wire.content import Content, find_record
from fedwsa.wire.names import NOVA, NOVA_LENGTH, NOVA_SQUARE, NOVA_WEIGHT


class FedNova(Objective):
    """Count the local steps, and report how far they would go under a constant gradient.

    That length is a_k = η_k·‖a‖₁ with ‖a‖₁ = Σ_{j=1}^K (1 − m^j)/(1 − m) under momentum m. (The
    paper has one learning rate η for all, which cancels; with it in a_k, clients of differing
    rates are normalised too: ours.)

    Source: arXiv 2007.07481.
    """

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if local is None or not local.examples:
            raise ValueError("FedNova needs learning rate and number of examples of the client")
        self._local, self._steps = local, 0

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server asks for the steps."""
        return find_record(content, NOVA) is not None

    def add_gradient(self) -> None:
        """Count a step."""
        self._steps += 1

    def end(self) -> dict[str, float | list[float]]:
        """n_k/a_k, by which the server weights, with a_k and its square."""
        length = plain_steps(self._steps, self._local.momentum) * self._local.lr
        return {
            NOVA_WEIGHT: self._local.examples / length,
            NOVA_LENGTH: length,
            NOVA_SQUARE: length**2,
        }
