"""What a client sends back, and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.memory import keep
from fedwsa.algorithms.objective import LocalRun, Objective
from fedwsa.algorithms.objectives import require_numbers
from fedwsa.schema.config import Config
from fedwsa.wire import messages
from fedwsa.wire.names import ARRAYS, METRICS, NUM_EXAMPLES, TRAIN_LOSS


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of a training.

    Attributes
    ----------
    weights : dict
        Those that travel, and those that an objective keeps.
    loss : float
        Mean task loss.
    objectives : sequence of Objective
        That took part; they have yet to end.
    local : LocalRun
        The state in it is that from which the training began.
    """

    weights: dict[str, Tensor]
    loss: float
    objectives: Sequence[Objective]
    local: LocalRun


def reply_with(config: Config, message: Message, context: Context, trained: Trained) -> Message:
    """The trained model with its metrics; the client's state goes into its context.

    In a private run each client counts once, and says no more than its model and what it is to
    let the server know beside.
    """
    local = trained.local
    examples = 1 if config.private else local.examples
    metrics = MetricRecord({NUM_EXAMPLES: examples})
    if not config.withheld:
        metrics[TRAIN_LOSS] = trained.loss
    begun, shared = dict(local.state), trained.weights
    for objective in trained.objectives:
        shared = objective.share(shared)
    ended = [objective.end() for objective in trained.objectives]
    for objective, said in zip(trained.objectives, ended, strict=True):
        require_numbers(objective, said)
        metrics.update({} if config.private else said)
        shared = shared | objective.arrays()
    reply = RecordDict({ARRAYS: messages.precise_arrays(shared), METRICS: metrics})
    for objective in trained.objectives:
        for name, tensors in objective.records().items():
            reply[name] = messages.precise_arrays(tensors)
    keep(message, context, begun, local.state)
    return Message(reply, reply_to=message)
