"""What differential privacy has cost, round by round."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.serverapp.strategy import Strategy

from fedwsa.algorithms.privacy import local_spent, spent
from fedwsa.schema.sections import Privacy
from server.record import Trained

_ASKED = "asked/"  # before the number of a client, in what a checkpoint sums up


class Budget:
    """What a run has spent.

    Central privacy has a ledger in the strategy. Under local privacy each answer has its price,
    and the client that was asked most often has paid most.

    Parameters
    ----------
    privacy
        As the run has it.
    strategy
        Of the run.
    past
        Sums over the rounds that are over, of a run that is resumed.
    """

    def __init__(self, privacy: Privacy, strategy: Strategy, past: Mapping[str, float]) -> None:
        self._privacy, self._strategy = privacy, strategy
        self._asked = {key: n for key, n in past.items() if key.startswith(_ASKED)}

    def after(self, trained: Trained) -> float | None:
        """Count a round; ε so far, None if there is none or it is not known."""
        if (local := self._privacy.local) is None:
            return spent(self._strategy)
        for key in (f"{_ASKED}{client}" for client in trained.asked):
            self._asked[key] = self._asked.get(key, 0) + 1
        most = max(self._asked.values(), default=0)
        return local_spent(local.epsilon, self._privacy.delta, int(most))

    def sums(self) -> dict[str, float]:
        """How often each client was asked, for a checkpoint."""
        return dict(self._asked)
