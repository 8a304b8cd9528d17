"""The ClientApp: trains and evaluates the model it is sent on its own share of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from clients import cohort
from clients.borrowed import borrowed
from clients.fisher import asks_for_fisher, fisher_if_asked
from clients.memory import alike_but_for_memory, keep, recalled
from clients.network import Network, network_for
from clients.node import client_of as _client
from clients.node import introduce, open_data, require_same_data
from clients.privacy import asks_to_clip, clip_if_asked, noise_if_wished
from clients.scaling import scaled
from clients.training import Samples, train_augmented
from fedwsa import seeding
from fedwsa.algorithms.memory.client import LostMemory
from fedwsa.algorithms.objective import Content, LocalRun, Objective, Weights, find_record
from fedwsa.algorithms.objectives import OBJECTIVES, own_objectives, require_numbers
from fedwsa.algorithms.personal import client as personal
from fedwsa.config.component import ConfigError
from fedwsa.config.compose import from_run_config
from fedwsa.config.schema import Config
from fedwsa.data.evaluation import evaluate, measure_statistics
from fedwsa.data.examples import Examples
from fedwsa.data.federated import FederatedData
from fedwsa.data.skew import skewed
from fedwsa.fleet.conditions import Conditions, draw_conditions
from fedwsa.fleet.devices import resolve_device
from fedwsa.fleet.systems import Task
from fedwsa.models import state as model_state
from fedwsa.models.flops import training_flops
from fedwsa.remembered import enter
from fedwsa.simulation.cohort import CohortApp
from fedwsa.wire import messages


def build(config: Config | None = None) -> CohortApp:
    """A ClientApp for a composed run.

    Parameters
    ----------
    config
        None: composed from the run's ``overrides``, as on the command line.
    """
    app = CohortApp()

    def of_run(context: Context) -> Config:
        enter(context.run_id)
        return config or from_run_config(context.run_config)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Say which partition this node has, and which size; or why it cannot take part."""
        try:
            run = of_run(context)
            answer = RecordDict({messages.CONFIG: introduce(run, message, context)})
        except ConfigError as error:
            return Message(Error(messages.REFUSED, str(error)), reply_to=message)
        return Message(answer, reply_to=message)

    @app.train(mods=[clip_if_asked])
    def train_client(message: Message, context: Context) -> Message:
        run = of_run(context)

        def trained(message: Message, context: Context) -> Message:
            received = _receive(run, message, context)
            with borrowed(received.network.model):
                return _train(run, message, context, received)

        try:
            return noise_if_wished(
                run, message, context, trained, _round(message), _client(context)
            )
        except LostMemory as error:
            return _lost(message, error)

    @app.cohort
    def train_clients(
        received: Sequence[Message], contexts: Sequence[Context]
    ) -> list[Message] | None:
        run = of_run(contexts[0])
        return _train_together(run, received, contexts)

    @app.evaluate()
    def evaluate_client(message: Message, context: Context) -> Message:
        run = of_run(context)
        try:
            return _evaluate(run, message, context)
        except LostMemory as error:
            return _lost(message, error)

    return app


def _lost(message: Message, error: LostMemory) -> Message:
    return Message(Error(messages.LOST_MEMORY, str(error)), reply_to=message)


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
    """

    data: FederatedData
    network: Network
    device: str
    content: Content
    state: dict[str, dict[str, Tensor]]


def _receive(config: Config, message: Message, context: Context) -> Received:
    """The network with the received weights, and the client's own, in memory of its own."""
    data = open_data(config, message.content, context)
    device = resolve_device(config.device)
    named = find_record(message.content, messages.SIZE)
    component = config.model_of(None if named is None else str(named[messages.SIZE]))
    arrays = messages.model_arrays(message.content)
    if arrays is None:
        raise ValueError("the message must hold one ArrayRecord, or one named arrays")
    content, state = _content(message), recalled(message, context)
    tensors = messages.to_tensors(arrays) | personal.own_part(content, state)
    tensors.pop(messages.SCOPE_ARRAY, None)  # no part of the model
    layout = torch.channels_last if config.local.channels_last else torch.contiguous_format
    whole = data.whole
    network = network_for(
        component, whole.shape, whole.classes, device, tensors, config.seed, layout
    )
    require_same_data(data, content)
    network.require_built_alike(content)
    network.load(tensors)
    return Received(data, network, device, content, state)


def _round(message: Message) -> int:
    instructions = find_record(message.content, messages.SERVER_ROUND)
    if instructions is None:
        raise ValueError(f"the message names no {messages.SERVER_ROUND}")
    return int(instructions[messages.SERVER_ROUND])


def _rate(message: Message) -> float:
    """By what the server asks to divide hidden activations."""
    named = find_record(message.content, messages.SIZE_RATE)
    return 1.0 if named is None else float(named[messages.SIZE_RATE])


def _deadline(message: Message) -> float | None:
    """Simulated seconds after which the server takes no answer, if clients are to mind them."""
    named = find_record(message.content, messages.DEADLINE)
    return None if named is None else float(named[messages.DEADLINE])


def _in_time(
    conditions: Conditions, config: Config, data: FederatedData, message: Message, client: int
) -> Conditions:
    """The conditions with as many steps as leave time to answer, where there is a deadline."""
    deadline = _deadline(message)
    if deadline is None:
        return conditions
    named = find_record(message.content, messages.SIZE)
    component = config.model_of(None if named is None else str(named[messages.SIZE]))
    task = Task(
        config.client_device(client),
        messages.payload(message.content),
        training_flops(component, data.whole.shape, data.whole.classes),
        conditions.batches(len(data.split(client)[0])),
    )
    return replace(conditions, steps=task.steps_within(deadline))


def _samples(config: Config, received: Received, key: tuple[int, int]) -> Samples:
    """A client's training samples in a round, drawn by (seed, round, client)."""
    data, device = received.data, received.device
    random = seeding.generator(config.seed, "train", *key)
    pooled = find_record(received.content, messages.POOLED)
    if pooled is None:
        own = _seen(config, data, key[1], held=False)
    else:
        own = _pool(config, data, float(pooled[messages.POOLED]), random)
    augment = data.whole.augmentation(config.dataset.augment)

    def prepare(inputs: Tensor) -> Tensor:
        return data.whole.prepare(inputs if augment is None else augment(inputs, random))

    return Samples(own.inputs.to(device), own.labels.to(device), prepare, random)


def _seen(config: Config, data: FederatedData, client: int, *, held: bool) -> Examples:
    """A client's training samples or its hold-out, as its skew has them."""
    own = data.whole.train[data.split(client)[held]]
    return replace(own, inputs=skewed(config.skew, own.inputs, config.seed, client, held))


def _pool(config: Config, data: FederatedData, share: float, random: torch.Generator) -> Examples:
    """A share of the training samples of all clients, for the centralised reference."""
    parts = [_seen(config, data, k, held=False) for k in range(len(data.partition.shares))]
    inputs, labels = (torch.cat([getattr(p, of) for p in parts]) for of in ("inputs", "labels"))
    pooled = Examples(inputs, labels)
    if share == 1.0:
        return pooled
    order = torch.randperm(len(pooled), generator=random)
    return pooled[order[: max(1, round(share * len(pooled)))]]


def _content(message: Message) -> Content:
    """The message as objectives see it: arrays as tensors."""
    return {
        name: messages.to_tensors(record) if isinstance(record, ArrayRecord) else record
        for name, record in message.content.items()
    }


def _conditions(config: Config, content: Content, client: int) -> Conditions:
    """A client's own, but the usual ones for the pooled samples of all."""
    if find_record(content, messages.POOLED) is not None:
        return Conditions.usual(config.local)
    return draw_conditions(config.local, config.seed, client)


def _objectives(
    config: Config, weights: Weights, content: Content, local: LocalRun
) -> list[Objective]:
    """Those that the message asks for; the run's own, who ask for themselves, come last."""
    kinds = (*OBJECTIVES, *own_objectives(config.local.objectives))
    made = (kind(weights, content, local) for kind in kinds)
    return [objective for objective in made if objective.active]


def _reply(
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


def _classes(content: Content, samples: Samples, count: int) -> list[float] | None:
    """Which classes a client trains on, 1 or 0 for each; None where nobody asks."""
    if find_record(content, messages.CLASS_ROWS) is None:
        return None
    there = torch.zeros(count)
    there[torch.unique(samples.labels).cpu()] = 1.0
    return [float(held) for held in there]


def _train(config: Config, message: Message, context: Context, received: Received) -> Message:
    client, model, content = _client(context), received.network.model, received.content
    key = (_round(message), client)
    samples = _samples(config, received, key)
    conditions = _conditions(config, content, client)
    conditions = _in_time(conditions, config, received.data, message, client)
    local = LocalRun(conditions.lr, config.local.momentum, received.state, len(samples))
    objectives = _objectives(config, received.network.weights(), content, local)
    # Dropout draws from the global generator: seeded for this client and round, put back after.
    with seeding.seeded(config.seed, "dropout", *key), scaled(model, _rate(message)):
        drawn = seeding.generator(config.seed, "weight augmentation", *key)
        loss = train_augmented(model, samples, config.local, conditions, objectives, drawn)
    random = seeding.generator(config.seed, "fisher", *key)
    prepare, weights = received.data.whole.prepare, received.network.state()
    more = fisher_if_asked(model, samples.inputs, samples.labels, prepare, content, random)
    classes = _classes(content, samples, received.data.whole.classes)
    return _reply(
        config, message, context, weights, content, loss, objectives, local, more, classes
    )


def _train_together(
    config: Config, received: Sequence[Message], contexts: Sequence[Context]
) -> list[Message] | None:
    """Train several clients at once, if they can be."""
    if not alike_but_for_memory(received):
        return None
    first = _receive(config, received[0], contexts[0])
    model, content = first.network.model, first.content
    if _deadline(received[0]) is not None or messages.PERSONAL in content:
        return None
    if asks_for_fisher(content):  # of each model by itself
        return None
    if cohort.why_not(config.local) or first.network.templated:
        return None
    stacking = first.network.stacking(config.local.largest_batch)
    if stacking.reason:
        return None
    if asks_to_clip(received[0]) or config.privacy.local is not None:
        return None
    number = _round(received[0])
    drawn = [_samples(config, first, (number, _client(c))) for c in contexts]
    if not cohort.fits(drawn):
        return None
    conditions = [_conditions(config, content, _client(c)) for c in contexts]
    alike: dict[tuple[int, int], list[int]] = {}  # those who may stand in one stack
    for k, own in enumerate(conditions):
        alike.setdefault((own.batch_size, own.epochs), []).append(k)
    start, replies = first.network.state(), {}
    for together in alike.values():
        order = sorted(together, key=lambda k: -len(drawn[k]))
        stack = cohort.Stack(model, len(order), stacking.padded)
        views = [stack.client(i) for i in range(len(order))]
        local = [
            LocalRun(
                conditions[k].lr,
                config.local.momentum,
                recalled(received[k], contexts[k]),
                len(drawn[k]),
            )
            for k in order
        ]
        objectives = [
            _objectives(config, v, content, own) for v, own in zip(views, local, strict=True)
        ]
        if any(not o.stackable for own in objectives for o in own):
            return None
        with borrowed(model), scaled(model.train(), _rate(received[0])):
            losses = cohort.train_stack(
                stack,
                [drawn[k] for k in order],
                config.local,
                [conditions[k] for k in order],
                objectives,
            )
        for i, k in enumerate(order):
            weights = {name: views[i].get(name, t) for name, t in start.items()}
            replies[k] = _reply(
                config,
                received[k],
                contexts[k],
                weights,
                content,
                losses[i],
                objectives[i],
                local[i],
                classes=_classes(content, drawn[k], first.data.whole.classes),
            )
    return [replies[k] for k in range(len(received))]


def _evaluate(config: Config, message: Message, context: Context) -> Message:
    """Score the received model on the client's own hold-out; no samples, no weight.

    Statistics of static norms are measured on its own training samples first.
    """
    received = _receive(config, message, context)
    data, network, device = received.data, received.network, received.device
    own = _seen(config, data, _client(context), held=True)
    with borrowed(network.model):
        if len(own) and model_state.measured(network.model):
            trained_on = _seen(config, data, _client(context), held=False)
            measure_statistics(network.model, trained_on.inputs, data.whole.prepare, device)
        score = evaluate(network.model, own, data.whole, device, config.evaluation.batch_size)
    metrics = MetricRecord(
        {
            messages.NUM_EXAMPLES: score.examples,
            messages.ACCURACY: score.accuracy,
            messages.LOSS: score.loss,
        }
    )
    return Message(RecordDict({messages.METRICS: metrics}), reply_to=message)


app = build()
