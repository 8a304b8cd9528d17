"""Choosing by validation accuracy: when to stop, and which round's model was the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from flwr.app import ArrayRecord

from fedwsa.config.component import ConfigError
from fedwsa.data.evaluation import Score
from fedwsa.schema.config import Config
from server.callbacks.tables import validation_accuracies
from server.global_model import GlobalModel
from server.record import RoundRecord

Report = Callable[[int, float], bool]
"""(evaluations so far, validation accuracy) → whether the run is given up."""


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
        self.reason = f"no better validation accuracy for {patience} evaluations"
        self._best, self._waited = -1.0, 0
        for accuracy in past:
            self._see(accuracy)

    def _see(self, accuracy: float) -> None:
        self._waited = 0 if accuracy > self._best else self._waited + 1
        self._best = max(self._best, accuracy)

    def is_over(self, validation: Score | None) -> bool:
        """Whether a round is the last; to be asked once of each, None: it was not validated."""
        if validation is not None:
            self._see(validation.accuracy)
        return self._waited >= self._patience


class Pruned:
    """Ends a run that somebody who compares it with others gives up.

    Parameters
    ----------
    report
        Of who compares.
    """

    reason = "others were better by now"

    def __init__(self, report: Report) -> None:
        self._report, self._seen = report, 0

    def is_over(self, validation: Score | None) -> bool:
        """Whether a round is the last; to be asked once of each, None: it was not validated."""
        if validation is None:
            return False
        self._seen += 1
        return self._report(self._seen, validation.accuracy)


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


def build_choosing(
    config: Config, model: GlobalModel, begun: int = 0
) -> tuple[EarlyStop | None, BestModel | None]:
    """What goes by the validation accuracy, as it was after the rounds that are over.

    Raises
    ------
    ConfigError
        If there is nothing to choose by.
    """
    wanted = config.evaluation
    if (wanted.patience or wanted.keep_best) and not model.validates:
        if not len(model.data.validation):
            raise ConfigError(
                f"evaluation.validation={wanted.validation:g} leaves no sample to choose by"
            )
        raise ConfigError(f"evaluation: under {config.label} there is no global model to validate")
    past = validation_accuracies(model.folder, begun)
    stop = best = None
    if wanted.patience is not None:
        stop = EarlyStop(wanted.patience, [accuracy for _, accuracy in past])
    if wanted.keep_best:
        best = BestModel(partial(model.save, "best.safetensors", model.largest), past)
    return stop, best
