"""Clients that train at once: who of them may, and their replies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from flwr.app import Context, Message

from clients import cohort
from clients.borrowed import borrowed
from clients.memory import alike_but_for_memory, recalled
from clients.node import client_of
from clients.privacy import asks_to_clip
from clients.received import Received, conditions_of, deadline_of, receive, round_of
from clients.replying import Trained, reply_with
from clients.samples import local_run, samples_of
from clients.training import Samples
from fedwsa.algorithms.objective import stacks
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.config import Config


def train_together(
    config: Config, received: Sequence[Message], contexts: Sequence[Context]
) -> list[Message] | None:
    """Train several clients at once, if they can be."""
    if not alike_but_for_memory(received):
        return None
    first = receive(config, received[0], contexts[0])
    if _trained_alone(config, received[0], first):
        return None
    stacking = first.network.stacking(config.local.largest_batch)
    if stacking.reason:
        return None
    number, clients = round_of(received[0]), [client_of(context) for context in contexts]
    drawn = [samples_of(config, first, (number, client)) for client in clients]
    if not cohort.fits(drawn):
        return None
    conditions = [conditions_of(config, first.content, client) for client in clients]
    alike: dict[tuple[int, int], list[int]] = {}  # those who may stand in one stack
    for k, own in enumerate(conditions):
        alike.setdefault((own.batch_size, own.epochs), []).append(k)
    replies: dict[int, Message] = {}
    for together in alike.values():
        order = sorted(together, key=lambda k: -len(drawn[k]))
        stacked = _train_stack(
            config,
            first,
            stacking.padded,
            [received[k] for k in order],
            [contexts[k] for k in order],
            [drawn[k] for k in order],
            [conditions[k] for k in order],
        )
        replies |= dict(zip(order, stacked, strict=True))
    return [replies[k] for k in range(len(received))]


def _trained_alone(config: Config, message: Message, first: Received) -> bool:
    """Whether the run or the message asks for what stacked models cannot do."""
    return (
        deadline_of(message) is not None
        or not all(map(stacks, first.kinds))
        or cohort.why_not(config.local) is not None
        or first.network.templated
        or asks_to_clip(message)
        or config.privacy.local is not None
    )


def _train_stack(
    config: Config,
    first: Received,
    padded: bool,
    received: Sequence[Message],
    contexts: Sequence[Context],
    drawn: Sequence[Samples],
    conditions: Sequence[Conditions],
) -> list[Message]:
    """Train clients in one stack, those with most samples first."""
    model, content, start = first.network.model, first.content, first.network.state()
    stack = cohort.Stack(model, len(received), padded)
    views = [stack.client(i) for i in range(len(received))]
    number = round_of(received[0])
    local = [
        local_run(
            config, first, own, samples, recalled(message, context), (number, client_of(context))
        )
        for own, message, context, samples in zip(
            conditions, received, contexts, drawn, strict=True
        )
    ]
    objectives = [
        [kind(view, content, own) for kind in first.kinds]
        for view, own in zip(views, local, strict=True)
    ]
    with borrowed(model), ExitStack() as around:
        model.train()
        for kind in first.kinds:  # all were told the same, and have one model
            around.enter_context(kind.during(model, content))
        losses = cohort.train_stack(stack, drawn, config.local, conditions, objectives)
    return [
        reply_with(
            config,
            received[i],
            contexts[i],
            Trained(
                {name: views[i].get(name, tensor) for name, tensor in start.items()},
                losses[i],
                objectives[i],
                local[i],
            ),
        )
        for i in range(len(received))
    ]
