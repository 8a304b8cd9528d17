"""What a client sends back, and what it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.memory import keep
from clients.training import Samples
from fedwsa.algorithms.objective import LocalRun, Objective, Weights
from fedwsa.algorithms.objectives import OBJECTIVES, own_objectives, require_numbers
from fedwsa.algorithms.personal import client as personal
from fedwsa.schema.config import Config
from fedwsa.wire import messages
from fedwsa.wire.content import Content, find_record


def objectives_of(
    config: Config, weights: Weights, content: Content, local: LocalRun
) -> list[Objective]:
    """Those that the message asks for; the run's own, who ask for themselves, come last."""
    kinds = (*OBJECTIVES, *own_objectives(config.local.objectives))
    made = (kind(weights, content, local) for kind in kinds)
    return [objective for objective in made if objective.active]


def reply_with(
    config: Config,
    message: Message,
    context: Context,
    weights: dict[str, Tensor],
    content: Content,
    loss: float,
    objectives: Sequence[Objective],
    local: LocalRun,
    more: Mapping[str, dict[str, Tensor]] | None = None,
    classes: list[float] | None = None,
) -> Message:
    """The trained model with its metrics; the client's state goes into its context.

    In a private run each client counts once, and says no more than its model and what it is to
    let the server know beside.
    """
    examples = 1 if config.private else local.examples
    metrics = MetricRecord({messages.NUM_EXAMPLES: examples})
    if not config.withheld:
        metrics[messages.TRAIN_LOSS] = loss
    if classes is not None and not config.private:
        metrics[messages.CLASSES] = classes
    begun = dict(local.state)
    shared = personal.keep(weights, content, local.state)
    ended = [objective.end() for objective in objectives]
    for objective, said in zip(objectives, ended, strict=True):
        require_numbers(objective, said)
        metrics.update({} if config.private else said)
        shared = shared | objective.arrays()
    reply = RecordDict(
        {messages.ARRAYS: messages.precise_arrays(shared), messages.METRICS: metrics}
    )
    records = dict(more or {})
    for objective in objectives:
        records |= objective.records()
    for name, tensors in records.items():
        reply[name] = messages.precise_arrays(tensors)
    keep(message, context, begun, local.state)
    return Message(reply, reply_to=message)


def classes_of(content: Content, samples: Samples, count: int) -> list[float] | None:
    """Which classes a client trains on, 1 or 0 for each; None where nobody asks."""
    if find_record(content, messages.CLASS_ROWS) is None:
        return None
    there = torch.zeros(count)
    there[torch.unique(samples.labels).cpu()] = 1.0
    return [float(held) for held in there]
