"""The Fisher information of what a client has trained, where the server asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fedwsa.data.evaluation import measure_statistics
from fedwsa.merge.fisher_information import fisher_information
from fedwsa.wire import messages
from fedwsa.wire.content import Content, find_record


def asks_for_fisher(content: Content) -> bool:
    """Whether the server wants it beside the model."""
    return find_record(content, messages.FISHER_LABELS) is not None


def fisher_if_asked(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    prepare: Callable[[Tensor], Tensor],
    content: Content,
    random: torch.Generator,
) -> dict[str, dict[str, Tensor]]:
    """The diagonal Fisher information of a trained model on its samples, as a record to send.

    Of the plain task loss on samples as they are, not augmented.

    Parameters
    ----------
    random
        Draws the labels, where the server wants them drawn from the model.

    Returns
    -------
    dict
        Name of the record → tensors; empty if the message does not ask for it.
    """
    asked = find_record(content, messages.FISHER_LABELS)
    if asked is None:
        return {}
    observed = asked[messages.FISHER_LABELS] == "observed"
    measure_statistics(model, inputs, prepare, inputs.device)
    names: Iterable[str] = asked[messages.FISHER_LAYERS]
    found = fisher_information(
        model, inputs, labels if observed else None, random=random, prepare=prepare
    )
    return {messages.FISHER: {name: found[name] for name in names}}
