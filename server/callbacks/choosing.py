"""Choosing by validation accuracy: when to stop, and which round's model was the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord

from server.rounds import RoundRecord


class EarlyStop:
    """Ends a run that has not become better for some evaluations.

    Parameters
    ----------
    patience
        Evaluations in a row without a better validation accuracy after which it is over.
    past
        Validation accuracies of the rounds that are over, of a run that is resumed.
    """

    def __init__(self, patience: int, past: Iterable[float] = ()) -> None:
        self._patience = patience
        self._best, self._waited = -1.0, 0
        for accuracy in past:
            self._see(accuracy)

    def _see(self, accuracy: float) -> None:
        self._waited = 0 if accuracy > self._best else self._waited + 1
        self._best = max(self._best, accuracy)

    def is_over(self, record: RoundRecord) -> bool:
        """Whether a round is the last; to be asked once of each."""
        if record.validation is not None:
            self._see(record.validation.accuracy)
        return self._waited >= self._patience


class BestModel:
    """Keeps the global model of the round with the best validation accuracy, the first of equals.

    Parameters
    ----------
    save
        Stores the arrays of a round.
    past
        Rounds that are over and their validation accuracies, of a run that is resumed.
    """

    def __init__(
        self,
        save: Callable[[ArrayRecord, int], None],
        past: Iterable[tuple[int, float]] = (),
    ) -> None:
        self._save = save
        self.round, self.accuracy = 0, -1.0
        for number, accuracy in past:
            self._see(number, accuracy)

    def _see(self, number: int, accuracy: float) -> bool:
        if accuracy <= self.accuracy:
            return False
        self.round, self.accuracy = number, accuracy
        return True

    def on_round(self, record: RoundRecord) -> None:
        """Store the model if it is the best so far."""
        kept = record.validation
        if kept is not None and self._see(record.round, kept.accuracy):
            assert record.arrays is not None
            self._save(record.arrays, record.round)

    def on_end(self) -> None:
        """Nothing is left to do."""
