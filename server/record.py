"""What happened in a round, made once when it is over: what callbacks and trackers are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

from fedwsa.algorithms.wsa.server import ScopeReport
from fedwsa.data.evaluation import Score, jain_index
from server.systems import Costs


@dataclass(frozen=True)
class ClientScores:
    """Accuracy of the global model on the clients' own hold-outs."""

    mean: float
    worst10: float
    std: float
    jain: float

    @classmethod
    def of(cls, accuracies: Sequence[float]) -> ClientScores:
        """Over clients: mean, mean of the worst tenth (at least one), deviation, Jain index."""
        ordered = sorted(accuracies)
        tenth = ordered[: -(-len(ordered) // 10)]
        return cls(
            float(np.mean(ordered)),
            float(np.mean(tenth)),
            float(np.std(ordered)),
            jain_index(ordered),
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The training of a round, and the model that it brought.

    Attributes
    ----------
    cohort : tuple of int
        Clients that were asked to train.
    dropped, late : tuple of int
        Those of them that gave no answer, and that the deadline hit; see
        :class:`server.systems.Plan`.
    failed : tuple of int
        Those that should have answered, but whose answer is not in the average.
    rejected : tuple of int
        Those of them that gave an answer which the guard refused.
    answers : mapping of int to MetricRecord
        What each client reported of its training, of those that did not fail.
    train_loss : float or None
        The clients' mean task loss.
    scopes : ScopeReport or None
        What FedWSA measured.
    costs : Costs or None
        What the training took of the simulated devices; None: it did not happen on them.
    moved : bool
        Whether the round brought a model.
    lr, server_lr : float or None
        Learning rates of the round: of a client that draws no other, and of the strategy, where
        it has one.
    staleness : float or None
        Mean of the answers' (:mod:`server.pace`); None: the run goes in rounds, or there was none.
    """

    cohort: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    answers: Mapping[int, MetricRecord] = field(default_factory=dict)
    train_loss: float | None = None
    scopes: ScopeReport | None = None
    costs: Costs | None = None
    moved: bool = False
    lr: float | None = None
    server_lr: float | None = None
    staleness: float | None = None

    @property
    def asked(self) -> tuple[int, ...]:
        """Clients that are to answer, whether or not they do."""
        away = {*self.dropped}
        return tuple(client for client in self.cohort if client not in away)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The global model after a round, as the server scores it in some of them.

    Attributes
    ----------
    sizes : mapping of str to Score
        The model of each size on the global test set, the largest first; none where each client
        has a model of its own.
    validation : Score or None
        The global model on the validation split, if there is one.
    attack_success : float or None
        How often it answers what an attack wants, if there is one that wants something.
    """

    sizes: Mapping[str, Score] = field(default_factory=dict)
    validation: Score | None = None
    attack_success: float | None = None

    @property
    def score(self) -> Score | None:
        """The global model on the global test set; with several sizes that of the largest."""
        return next(iter(self.sizes.values()), None)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The global model after a round, as the clients evaluate it in some of them.

    Attributes
    ----------
    clients : ClientScores or None
        On their hold-outs, if one has any.
    evaluations : mapping of int to MetricRecord
        What each client reported, of those that did not fail.
    failed_evaluation : tuple of int
        Clients that failed.
    adapted, unseen, unseen_adapted : ClientScores or None
        After the last round: of the same clients after they adapted the model, and of those that
        never trained, as they are and after.
    """

    clients: ClientScores | None = None
    adapted: ClientScores | None = None
    unseen: ClientScores | None = None
    unseen_adapted: ClientScores | None = None
    evaluations: Mapping[int, MetricRecord] = field(default_factory=dict)
    failed_evaluation: tuple[int, ...] = ()


@dataclass(frozen=True)
class RoundRecord(Trained, Scored, Evaluated):
    """What happened in one round: its training, its scores, and what both took.

    Attributes
    ----------
    round : int
        From 1.
    arrays : ArrayRecord or None
        The global model after the round.
    epsilon : float or None
        What differential privacy has cost so far; None: the run has none, or it is not known.
    last : bool
        Whether it is the last one of the run.
    seconds : mapping of str to float
        Wall time of the phases ``train``, ``aggregate``, ``evaluate``.
    """

    round: int
    arrays: ArrayRecord | None = None
    epsilon: float | None = None
    last: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
