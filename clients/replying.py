"""What a client sends back, and what it keeps."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict

from clients.memory import keep
from fedwsa.algorithms.objective import LocalRun, Objective
from fedwsa.algorithms.objectives import require_numbers
from fedwsa.config.blame import place_of, told
from fedwsa.schema.config import Config
from fedwsa.wire import messages
from fedwsa.wire.names import ARRAYS, METRICS, NUM_EXAMPLES, TRAIN_LOSS


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of a training.

    Attributes
    ----------
    loss : float
        Mean task loss.
    objectives : sequence of Objective
        That took part; they have yet to end.
    local : LocalRun
        The state in it is that from which the training began; ``trained`` are the weights.
    """

    loss: float
    objectives: Sequence[Objective]
    local: LocalRun


def reply_with(config: Config, message: Message, context: Context, trained: Trained) -> Message:
    """The trained model with its metrics; the client's state goes into its context.

    In a private run each client counts once, and says no more than its model and what it is to
    let the server know beside.
    """
    local = trained.local
    begun, shared = dict(local.state), local.trained
    for objective in trained.objectives:
        with _told_of(objective, "share"):
            shared = dict(objective.share(shared))
    local.shared = shared
    metrics = MetricRecord(_metrics(config, trained))
    for objective in trained.objectives:
        with _told_of(objective, "arrays"):
            beside = dict(objective.arrays())
        _require_new(objective, "arrays", beside, shared)
        shared |= beside
    reply = RecordDict({ARRAYS: messages.precise_arrays(shared), METRICS: metrics})
    for objective in trained.objectives:
        with _told_of(objective, "records"):
            records = {k: messages.precise_arrays(t) for k, t in objective.records().items()}
        _require_new(objective, "records", records, reply)
        for name, record in records.items():
            reply[name] = record
    keep(message, context, begun, local.state)
    return Message(reply, reply_to=message)


def metrics_with(
    config: Config, message: Message, context: Context, trained: Trained
) -> dict[str, Any]:
    """As :func:`reply_with`, where a client's arrays are answered with those of others."""
    begun = dict(trained.local.state)
    metrics = _metrics(config, trained)
    keep(message, context, begun, trained.local.state)
    return metrics


def _metrics(config: Config, trained: Trained) -> dict[str, Any]:
    """What a client and its objectives, which end here, say of a training."""
    metrics: dict[str, Any] = {NUM_EXAMPLES: 1 if config.private else trained.local.examples}
    if not config.withheld:
        metrics[TRAIN_LOSS] = trained.loss
    ended = []
    for objective in trained.objectives:
        with _told_of(objective, "end"):
            ended.append(dict(objective.end()))
    for objective, said in zip(trained.objectives, ended, strict=True):
        require_numbers(objective, said)
        _require_new(objective, "end", said, metrics)
        metrics.update({} if config.private else said)
    return metrics


@contextmanager
def _told_of(objective: Objective, hook: str) -> Iterator[None]:
    """Around a hook: what is wrong with what it returns names it; what it raises has a place."""
    try:
        yield
    except Exception as error:
        if place_of(error) is not None:
            raise
        raise ValueError(f"{type(objective).__name__}.{hook}(): {told(error)}") from error


def _require_new(
    objective: Objective, hook: str, said: Iterable[str], there: Container[str]
) -> None:
    """Refuse names that the reply has already.

    Raises
    ------
    ValueError
        Names the objective, and the first of them.
    """
    if taken := [name for name in said if name in there]:
        raise ValueError(
            f"{type(objective).__name__}.{hook}(): the reply has {taken[0]} already; take another "
            "name (what is sent of the weights is for share())"
        )
