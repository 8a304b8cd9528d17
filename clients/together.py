"""Clients that train at once: who of them may, and their replies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from flwr.app import Context, Message

from clients import cohort
from clients.borrowed import borrowed
from clients.memory import alike_but_for_memory, recalled
from clients.node import client_of
from clients.privacy import clipped_and_noised
from clients.received import (
    Received,
    begun_with,
    conditions_of,
    in_time,
    receive,
    round_of,
)
from clients.replying import Trained, reply_with
from clients.samples import DROPOUT, local_run, samples_of
from clients.stacking import Stacking
from clients.training import Samples
from fedwsa import seeding
from fedwsa.algorithms.objective import State, stacks
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.config import Config


def train_together(
    config: Config, received: Sequence[Message], contexts: Sequence[Context]
) -> list[Message] | str:
    """Train several clients at once; or say why they cannot be."""
    if not alike_but_for_memory(received):
        return "their messages differ"
    first = receive(config, received[0], contexts[0])
    if reason := _why_alone(config, first):
        return reason
    stacking = first.network.stacking(config.local.largest_batch)
    if stacking.reason:
        return stacking.reason
    number, clients = round_of(received[0]), [client_of(context) for context in contexts]
    drawn = [samples_of(config, first, (number, client)) for client in clients]
    if not cohort.fits(drawn):
        return _halves(config, received, contexts)
    conditions = [
        in_time(conditions_of(config, first.content, client), config, first.data, message, client)
        for message, client in zip(received, clients, strict=True)
    ]
    alike: dict[tuple[int, str], list[int]] = {}  # those who may stand in one stack
    for k, own in enumerate(conditions):
        alike.setdefault((own.batch_size, own.optimiser), []).append(k)
    replies: dict[int, Message] = {}
    for together in alike.values():
        steps = {k: cohort.count_steps(len(drawn[k]), conditions[k]) for k in together}
        order = sorted(together, key=lambda k: -steps[k])
        stacked = _train_stack(
            config,
            first,
            stacking,
            [received[k] for k in order],
            [contexts[k] for k in order],
            [drawn[k] for k in order],
            [conditions[k] for k in order],
        )
        replies |= dict(zip(order, stacked, strict=True))
    return [replies[k] for k in range(len(received))]


def _halves(
    config: Config, received: Sequence[Message], contexts: Sequence[Context]
) -> list[Message] | str:
    """Train one half after the other, where an epoch of all of them takes too much memory."""
    if len(received) < 2:
        return "an epoch of two of them takes too much memory"
    middle, replies = len(received) // 2, list[Message]()
    for half in (slice(middle), slice(middle, None)):
        trained = train_together(config, received[half], contexts[half])
        if isinstance(trained, str):
            return trained
        replies += trained
    return replies


def _why_alone(config: Config, first: Received) -> str | None:
    """What the run or a message asks for that stacked models cannot do."""
    if kind := next((kind for kind in first.kinds if not stacks(kind)), None):
        return f"{kind.__name__} looks at one model"
    if first.network.templated:
        return "their weights are made from templates"
    return cohort.why_not(config.local)


def _train_stack(
    config: Config,
    first: Received,
    stacking: Stacking,
    received: Sequence[Message],
    contexts: Sequence[Context],
    drawn: Sequence[Samples],
    conditions: Sequence[Conditions],
) -> list[Message]:
    """Train clients in one stack, those with most steps first."""
    network, content = first.network, first.content
    keys = [(round_of(received[0]), client_of(context)) for context in contexts]
    states = [recalled(*each) for each in zip(received, contexts, strict=True)]
    stack = cohort.Stack(network.model, len(received), stacking.padded, stacking.keeping)
    _begin(stack, first, states)
    runs = [
        local_run(config, first, own, samples, state, key)
        for own, samples, state, key in zip(conditions, drawn, states, keys, strict=True)
    ]
    views = [stack.client(k) for k in range(len(runs))]
    objectives = [
        [kind(view, content, run) for kind in first.kinds]
        for view, run in zip(views, runs, strict=True)
    ]
    with borrowed(network.model), ExitStack() as around:
        network.model.train()
        for kind in first.kinds:  # all were told the same, and have one model
            around.enter_context(kind.during(network.model, content))
        numbers = [seeding.key(config.seed, DROPOUT, *key) for key in keys]
        losses = cohort.train_stack(stack, drawn, config.local, conditions, objectives, numbers)
    rest = network.state()
    trained = [
        Trained(stack.state(k, rest), losses[k], objectives[k], run) for k, run in enumerate(runs)
    ]
    return [
        clipped_and_noised(config, message, context, reply_with(config, message, context, own), key)
        for message, context, own, key in zip(received, contexts, trained, keys, strict=True)
    ]


def _begin(stack: cohort.Stack, first: Received, states: Sequence[State]) -> None:
    """Give each client what it begins with for itself; the network has what one of them has."""
    own = [begun_with(first.kinds, first.content, state) for state in states]
    names = {name for tensors in own for name in tensors}
    for k, tensors in enumerate(own):
        stack.set(k, {n: tensors[n] if n in tensors else first.sent[n] for n in names})
