"""Answers of clients by what they count: each row of the classifier, or each client once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from flwr.app import Message, MetricRecord, RecordDict
from torch import Tensor

from fedwsa.algorithms.sizes.overlap import row_mean
from fedwsa.wire import messages
from fedwsa.wire.names import CLASSES


def by_class(
    replies: Sequence[Message], classifier: Sequence[str], weight: str
) -> tuple[dict[str, Tensor], Tensor] | None:
    """The classifier in replies of one shape, each row the mean over those who have its class.

    Parameters
    ----------
    classifier
        Names of the arrays that have a row for each class.
    weight
        Name of the metric by which a client counts. Which classes it has its metrics say as
        ``classes``, 1 or 0 for each; one that does not say has all.

    Returns
    -------
    dict, Tensor
        The arrays, and the weight of each row, shape ``(classes,)``; None where everybody has all
        classes.

    Source: the authors' code of HeteroFL, arXiv 2010.01264.
    """
    found = messages.reply_metrics(replies)
    said = [metrics.get(CLASSES) for metrics in found]
    if not classifier or all(not isinstance(v, list) or min(v) == 1 for v in said):
        return None
    arrays = [messages.model_arrays(reply.content) for reply in replies]
    tensors = [messages.to_tensors(a) for a in arrays if a is not None]
    count = len(tensors[0][classifier[0]])
    weights = [
        messages.number(metrics, weight)
        * torch.tensor(v if isinstance(v, list) else [1.0] * count, dtype=torch.float64)
        for metrics, v in zip(found, said, strict=True)
    ]
    means = {
        name: row_mean([(t[name], w) for t, w in zip(tensors, weights, strict=True)])
        for name in classifier
    }
    return means, torch.stack(weights).sum(0)


def once(reply: Message, weight: str) -> Message:
    """A reply that counts once, whatever its examples.

    Parameters
    ----------
    weight
        Name of the metric by which it counts.
    """
    [(name, metrics)] = reply.content.metric_records.items()
    counted = copy.copy(reply)
    counted.content = RecordDict({**reply.content, name: MetricRecord({**metrics, weight: 1})})
    return counted
