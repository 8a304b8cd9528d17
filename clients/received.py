"""What a message brings, and what the client has to answer it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor

from clients.memory import recalled
from clients.network import Network, network_for
from clients.node import open_data, require_same_data
from fedwsa.algorithms.compression.client import Compression
from fedwsa.algorithms.objective import Objective, State
from fedwsa.algorithms.objectives import OBJECTIVES, own_objectives
from fedwsa.config.component import Component, check_arguments, locate
from fedwsa.data.federated import FederatedData
from fedwsa.fleet.devices import resolve_device
from fedwsa.fleet.systems import Task
from fedwsa.models import state as model_state
from fedwsa.models.exits import exited
from fedwsa.models.flops import training_flops
from fedwsa.remembered import in_run
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.config import Config
from fedwsa.schema.fleet import Fleet
from fedwsa.schema.sections import Compress
from fedwsa.wire import messages
from fedwsa.wire.content import Content, find_record
from fedwsa.wire.names import DEADLINE, EXIT_DEPTHS, POOLED, SCOPE_ARRAY, SERVER_ROUND, SIZE


@dataclass(frozen=True, eq=False)
class Received:
    """What a message brought, and what the client has.

    Attributes
    ----------
    data : FederatedData
        Of all clients of this process.
    network : Network
        With the weights to begin with.
    device : str
        Where it lies.
    content : mapping
        The message as objectives see it.
    state : dict
        What the client keeps between rounds.
    sent : dict
        The tensors that were sent, before objectives put others in their place.
    kinds : list of type
        The objectives that the message asks for; the run's own, who ask for themselves, come last.
    """

    data: FederatedData
    network: Network
    device: str
    content: Content
    state: State
    sent: dict[str, Tensor]
    kinds: list[type[Objective]]


def receive(
    config: Config, message: Message, context: Context, evaluating: bool = False
) -> Received:
    """The network with the received weights, and the client's own, in memory of its own."""
    data = open_data(config, message.content, context)
    device = resolve_device(config.device)
    component = _component(config, message)
    arrays = messages.model_arrays(message.content)
    if arrays is None:
        raise ValueError("the message must hold one ArrayRecord, or one named arrays")
    content, state = content_of(message), recalled(message, context)
    kinds = kinds_of(config, content)
    sent = messages.to_tensors(arrays)
    sent.pop(SCOPE_ARRAY, None)  # no part of the model
    begun = begun_with(kinds, content, state, evaluating)
    tensors = sent | begun
    layout = torch.channels_last if config.local.channels_last else torch.contiguous_format
    whole = data.whole
    network = network_for(
        component, whole.shape, whole.classes, device, tensors, config.seed, layout
    )
    require_same_data(data, content)
    network.require_built_alike(content)
    for tie in model_state.tied(network.model):  # an objective knows it by one of its names
        tensors |= {n: begun[one] for one in tie[:1] if one in begun for n in tie if n in sent}
    network.load(tensors)
    return Received(data, network, device, content, state, sent, kinds)


def begun_with(
    kinds: Sequence[type[Objective]], content: Content, state: State, evaluating: bool = False
) -> dict[str, Tensor]:
    """What objectives let a client begin with, or evaluate, instead of what was sent."""
    own: dict[str, Tensor] = {}
    for kind in kinds:
        own |= (kind.evaluated_with if evaluating else kind.begin_with)(content, state)
    return own


def _component(config: Config, message: Message) -> Component:
    """What builds the network of the size that a message is for."""
    named = find_record(message.content, SIZE)
    component = config.model_of(None if named is None else str(named[SIZE]))
    exits = find_record(message.content, EXIT_DEPTHS)
    return component if exits is None else exited(component, [*exits[EXIT_DEPTHS]])


def kinds_of(config: Config, content: Content) -> list[type[Objective]]:
    """The objectives that a message asks for: ours, the strategy's, those that the run names."""
    kinds = dict.fromkeys((*OBJECTIVES, *named_objectives(config)))
    asked = [kind for kind in kinds if kind.asked(content)]
    return asked if config.compress.does_nothing else [*asked, compressing(config.compress)]


def named_objectives(config: Config) -> list[type[Objective]]:
    """The objectives that a run names, its strategy's first; they may not be asked for."""
    return [*config.strategy.objectives, *own_objectives(config.local.objectives)]


@in_run(1)
def compressing(wish: Compress) -> type[Objective]:
    """What compresses as a run wishes; it has the last word on what is sent."""
    function = locate(wish.target, "compress._target_")
    keys = check_arguments(function, wish.arguments, "compress", 2, {})
    made = {
        "rule": staticmethod(partial(function, **keys)),
        "feedback": wish.feedback,
        "rescale": wish.rescale,
    }
    return type("Compression", (Compression,), made)


def round_of(message: Message) -> int:
    """The number of the round, from 1.

    Raises
    ------
    ValueError
        If the message does not say.
    """
    instructions = find_record(message.content, SERVER_ROUND)
    if instructions is None:
        raise ValueError(f"the message names no {SERVER_ROUND}")
    return int(instructions[SERVER_ROUND])


def deadline_of(message: Message) -> float | None:
    """Simulated seconds after which the server takes no answer, if clients are to mind them."""
    named = find_record(message.content, DEADLINE)
    return None if named is None else float(named[DEADLINE])


def in_time(
    conditions: Conditions, config: Config, data: FederatedData, message: Message, client: int
) -> Conditions:
    """The conditions with as many steps as leave time to answer, where there is a deadline."""
    deadline = deadline_of(message)
    if deadline is None:
        return conditions
    component = _component(config, message)
    task = Task(
        Fleet(config).device(client),
        messages.payload(message.content),
        training_flops(component, data.whole.shape, data.whole.classes),
        conditions.batches(len(data.split(client)[0])),
    )
    return replace(conditions, steps=task.steps_within(deadline))


def content_of(message: Message) -> Content:
    """The message as objectives see it: arrays as tensors."""
    return {
        name: messages.to_tensors(record) if isinstance(record, ArrayRecord) else record
        for name, record in message.content.items()
    }


def conditions_of(config: Config, content: Content, client: int, number: int) -> Conditions:
    """A client's own in a round, but the usual ones for the pooled samples of all."""
    pooled = find_record(content, POOLED) is not None
    own = Conditions.usual(config.local) if pooled else Fleet(config).conditions(client)
    rate, decay = config.rate(number), config.decay_rate(number)
    if rate == decay == 1.0:
        return own
    return replace(own, lr=own.lr * rate, weight_decay=own.weight_decay * decay)
