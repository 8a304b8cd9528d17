"""Clients that train at once: who of them may, and their replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise

from flwr.app import Context, Message
from torch import Tensor

from clients import cohort
from clients.borrowed import borrowed
from clients.memory import alike_but_for_memory, recalled
from clients.network import Network
from clients.node import client_of
from clients.phases import conditions_in, phases_of
from clients.privacy import asks_to_clip, clipped_and_noised
from clients.received import (
    Received,
    begun_with,
    conditions_of,
    in_time,
    receive,
    round_of,
)
from clients.replying import Trained, metrics_with, reply_with
from clients.samples import DROPOUT, local_run, samples_of
from clients.stack import Stack
from clients.stacking import Stacking
from clients.training import Samples
from fedwsa import seeding
from fedwsa.algorithms.objective import Objective, State, overrides
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.config import Config
from fedwsa.simulation.cohort import CohortReply


def train_together(
    config: Config, received: Sequence[Message], contexts: Sequence[Context]
) -> list[Message] | CohortReply | str:
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
    every = [conditions_of(config, first.content, client, number) for client in clients]
    conditions = [
        in_time(own, config, first.data, message, client)
        for own, message, client in zip(every, received, clients, strict=True)
    ]
    phases = phases_of(first.kinds, first.content)
    alike: dict[str, list[int]] = {}  # those who may stand in one stack
    for k, own in enumerate(conditions):
        alike.setdefault(own.optimiser, []).append(k)
    parts: list[_Part] = []
    for together in alike.values():
        steps = {
            k: [
                cohort.count_steps(len(drawn[k]), own)
                for own in conditions_in(phases, conditions[k], len(drawn[k]))
            ]
            for k in together
        }
        order = sorted(together, key=lambda k: steps[k], reverse=True)
        if any(steps[k][i] > steps[j][i] for j, k in pairwise(order) for i in range(len(phases))):
            return "some have more steps in one phase, others in another"
        trained = _train_stack(
            config,
            first,
            stacking,
            [received[k] for k in order],
            [contexts[k] for k in order],
            [drawn[k] for k in order],
            [conditions[k] for k in order],
        )
        parts.append((trained, order))
    return _joined(parts)


def _halves(
    config: Config, received: Sequence[Message], contexts: Sequence[Context]
) -> list[Message] | CohortReply | str:
    """Train one half after the other, where an epoch of all of them takes too much memory."""
    if len(received) < 2:
        return "an epoch of two of them takes too much memory"
    middle, parts = len(received) // 2, list[_Part]()
    for half in (range(middle), range(middle, len(received))):
        place = slice(half.start, half.stop)
        trained = train_together(config, received[place], contexts[place])
        if isinstance(trained, str):
            return trained
        parts.append((trained, half))
    return _joined(parts)


_Part = tuple[list[Message] | CohortReply, Sequence[int]]
"""Answers, and which of the clients gave them."""


def _joined(parts: Sequence[_Part]) -> list[Message] | CohortReply:
    """The answers of all clients, in their order: of one kind, as the message asks for it."""
    clients = [k for _, own in parts for k in own]
    pieces = [answers for answers, _ in parts if isinstance(answers, CohortReply)]
    if pieces:
        return CohortReply.joined(pieces, clients)
    replies = [reply for answers, _ in parts if isinstance(answers, list) for reply in answers]
    pairs = dict(zip(clients, replies, strict=True))
    return [pairs[k] for k in sorted(pairs)]


def _why_alone(config: Config, first: Received) -> str | None:
    """What the run or a message asks for that stacked models cannot do."""
    if first.network.templated:
        return "their weights are made from templates"
    return cohort.why_not(config.local, first.kinds)


def _train_stack(
    config: Config,
    first: Received,
    stacking: Stacking,
    received: Sequence[Message],
    contexts: Sequence[Context],
    drawn: Sequence[Samples],
    conditions: Sequence[Conditions],
) -> list[Message] | CohortReply:
    """Train clients in one stack, those with most steps first."""
    network, content = first.network, first.content
    keys = [(round_of(received[0]), client_of(context)) for context in contexts]
    states = [recalled(*each) for each in zip(received, contexts, strict=True)]
    how = (stacking.padded, stacking.keeping, config.local.bf16)
    stack = Stack(network.model, len(received), *how)
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
    with borrowed(network.model):
        network.model.train()
        with ExitStack() as around:
            for kind in first.kinds:  # all were told the same, and have one model
                around.enter_context(kind.during(network.model, content))
            losses = _train_in_phases(config, first, stack, drawn, conditions, objectives, keys)
        rest = network.state()
        for k, run in enumerate(runs):
            run.trained = stack.state(k, rest)
            _look(network, run.trained, objectives[k])
    trained = [Trained(losses[k], objectives[k], run) for k, run in enumerate(runs)]
    answered = zip(received, contexts, trained, strict=True)
    if _plain(config, first, received[0]):
        metrics = [metrics_with(config, *each) for each in answered]
        return CohortReply(stack.arrays(rest), metrics)
    return [
        clipped_and_noised(config, message, context, reply_with(config, message, context, own), key)
        for (message, context, own), key in zip(answered, keys, strict=True)
    ]


def _train_in_phases(
    config: Config,
    first: Received,
    stack: Stack,
    drawn: Sequence[Samples],
    conditions: Sequence[Conditions],
    objectives: Sequence[Sequence[Objective]],
    keys: Sequence[tuple[int, int]],
) -> list[float]:
    """The trainings of which a round consists; the losses of each client's last."""
    numbers = [seeding.key(config.seed, DROPOUT, *key) for key in keys]
    phases = phases_of(first.kinds, first.content)
    pairs = zip(conditions, drawn, strict=True)
    in_each = [conditions_in(phases, own, len(samples)) for own, samples in pairs]
    losses = [0.0] * len(drawn)
    for number, phase in enumerate(phases):
        own = [each[number] for each in in_each]
        there = [k for k, each in enumerate(own) if each.steps != 0 or number == 0]
        if not there:
            break
        samples = [samples_of(config, first, key, number) for key in keys] if number else drawn
        found = cohort.train_stack(
            stack, samples, config.local, own, objectives, numbers, phase.trains
        )
        losses = [found[k] if k in there else loss for k, loss in enumerate(losses)]
    return losses


def _look(network: Network, trained: Mapping[str, Tensor], objectives: Sequence[Objective]) -> None:
    """Let those objectives that look at a trained model have a client's."""
    if looking := [one for one in objectives if overrides(type(one), "after")]:
        network.load(trained)
        for objective in looking:
            objective.after(network.model)


def _plain(config: Config, first: Received, message: Message) -> bool:
    """Whether a client answers with the trained model and metrics, and nothing else."""
    beside = any(kind.answers_beside(first.content) for kind in first.kinds)
    return not (beside or asks_to_clip(message) or config.privacy.local is not None)


def _begin(stack: Stack, first: Received, states: Sequence[State]) -> None:
    """Give each client what it begins with for itself; the network has what one of them has."""
    own = [begun_with(first.kinds, first.content, state) for state in states]
    names = {name for tensors in own for name in tensors}
    for k, tensors in enumerate(own):
        stack.set(k, {n: tensors[n] if n in tensors else first.sent[n] for n in names})
