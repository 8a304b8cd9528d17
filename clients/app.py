"""The ClientApp: trains and evaluates the model it is sent on its own share of the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients import cohort
from clients.network import Network, network_for
from clients.scaling import scaled
from clients.training import Samples, draw_conditions, train
from fedwsa import messages, seeding
from fedwsa.config import Config, from_run_config
from fedwsa.data.federated import FederatedData, open_federated
from fedwsa.data.images import crop_flip, normalise
from fedwsa.devices import resolve_device
from fedwsa.evaluation import evaluate
from fedwsa.objectives import Content, LocalRun, Objective, Weights, find_record
from fedwsa.objectives.proximal import Proximal
from fedwsa.objectives.scaffold import Scaffold
from fedwsa.objectives.scope import ScopeAlignment
from fedwsa.simulation.cohort import CohortApp

OBJECTIVES: tuple[type[Objective], ...] = (ScopeAlignment, Proximal, Scaffold)
"""Local objectives; each does nothing unless the server's message asks for it."""


def build(config: Config | None = None) -> CohortApp:
    """A ClientApp for a composed run.

    Parameters
    ----------
    config
        None: composed from the run's ``overrides``, as on the command line.
    """
    app = CohortApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Say which partition this node has, and which size."""
        run, client = config or from_run_config(context.run_config), _client(context)
        record = ConfigRecord({messages.PARTITION_ID: client})
        if run.clients.sizes is not None:
            images = open_federated(*run.data_key).images
            record[messages.SIZE] = run.client_sizes(images.shape, images.classes)[client]
        return Message(RecordDict({messages.CONFIG: record}), reply_to=message)

    @app.train()
    def train_client(message: Message, context: Context) -> Message:
        run = config or from_run_config(context.run_config)
        return _train(run, message, context)

    @app.cohort
    def train_clients(
        received: Sequence[Message], contexts: Sequence[Context]
    ) -> list[Message] | None:
        run = config or from_run_config(contexts[0].run_config)
        return _train_together(run, received, contexts)

    @app.evaluate()
    def evaluate_client(message: Message, context: Context) -> Message:
        run = config or from_run_config(context.run_config)
        return _evaluate(run, message, _client(context))

    return app


def _client(context: Context) -> int:
    return int(context.node_config[messages.PARTITION_ID])


def _receive(config: Config, message: Message) -> tuple[FederatedData, Network, str]:
    """The data, and the network with the received weights in memory of its own."""
    data = open_federated(*config.data_key)
    device = resolve_device(config.device)
    named = find_record(message.content, messages.SIZE)
    component = config.model_of(None if named is None else str(named[messages.SIZE]))
    arrays = messages.model_arrays(message.content)
    if arrays is None:
        raise ValueError("the message must hold one ArrayRecord, or one named arrays")
    tensors = messages.to_tensors(arrays)
    network = network_for(component, data.images.shape, data.images.classes, device, tensors)
    layout = torch.channels_last if config.local.channels_last else torch.contiguous_format
    # Copies become the parameters, so that a reply may hold them while the next client trains.
    network.load({k: _copy(t, device, layout) for k, t in tensors.items()})
    return data, network, device


def _copy(tensor: Tensor, device: str, layout: torch.memory_format) -> Tensor:
    kept = layout if tensor.dim() == 4 else torch.contiguous_format
    return tensor.to(device, memory_format=kept, copy=True)


def _round(message: Message) -> int:
    instructions = find_record(message.content, messages.SERVER_ROUND)
    if instructions is None:
        raise ValueError(f"the message names no {messages.SERVER_ROUND}")
    return int(instructions[messages.SERVER_ROUND])


def _rate(message: Message) -> float:
    """By what the server asks to divide hidden activations."""
    named = find_record(message.content, messages.SIZE_RATE)
    return 1.0 if named is None else float(named[messages.SIZE_RATE])


def _samples(config: Config, data: FederatedData, device: str, key: tuple[int, int]) -> Samples:
    """A client's training samples in a round, drawn by (seed, round, client)."""
    chosen, _ = data.split(key[1])
    random = seeding.generator(config.seed, "train", *key)

    def prepare(pixels: Tensor) -> Tensor:
        if config.dataset.augment == "crop_flip":
            pixels = crop_flip(pixels, random)
        return normalise(pixels, data.images.mean, data.images.std)

    pool = data.images.train
    pixels, labels = pool.pixels[chosen].to(device), pool.labels[chosen].to(device)
    return Samples(pixels, labels, prepare, random)


def _content(message: Message) -> Content:
    """The message as objectives see it: arrays as tensors."""
    return {
        name: messages.to_tensors(record) if isinstance(record, ArrayRecord) else record
        for name, record in message.content.items()
    }


def _local_run(config: Config, context: Context) -> LocalRun:
    conditions = draw_conditions(config.local, config.seed, _client(context))
    state = {name: messages.to_tensors(r) for name, r in context.state.array_records.items()}
    return LocalRun(conditions.lr, config.local.momentum, state)


def _objectives(weights: Weights, content: Content, local: LocalRun) -> list[Objective]:
    made = (kind(weights, content, local) for kind in OBJECTIVES)
    return [objective for objective in made if objective.active]


def _reply(
    message: Message,
    context: Context,
    weights: dict[str, Tensor],
    examples: int,
    loss: float,
    objectives: Sequence[Objective],
    local: LocalRun,
) -> Message:
    """The trained model with its metrics; the client's state goes into its context."""
    metrics = MetricRecord({messages.NUM_EXAMPLES: examples, messages.TRAIN_LOSS: loss})
    content = RecordDict({messages.ARRAYS: messages.to_arrays(weights), messages.METRICS: metrics})
    before = dict(local.state)
    for objective in objectives:
        metrics.update(objective.end())
        for name, tensors in objective.records().items():
            content[name] = messages.to_arrays(tensors)
    for name, tensors in local.state.items():
        if tensors is not before.get(name):
            context.state[name] = messages.to_arrays(tensors)
    return Message(content, reply_to=message)


def _train(config: Config, message: Message, context: Context) -> Message:
    data, network, device = _receive(config, message)
    client, model = _client(context), network.model
    key = (_round(message), client)
    samples = _samples(config, data, device, key)
    local = _local_run(config, context)
    objectives = _objectives(network.weights(), _content(message), local)
    conditions = draw_conditions(config.local, config.seed, client)
    # Dropout draws from the global generator: seeded for this client and round, put back after.
    with seeding.seeded(config.seed, "dropout", *key), scaled(model, _rate(message)):
        loss = train(model, samples, config.local, conditions, objectives)
    return _reply(message, context, network.state(), len(samples), loss, objectives, local)


def _train_together(
    config: Config, received: Sequence[Message], contexts: Sequence[Context]
) -> list[Message] | None:
    """Train several clients at once, if they can be; their messages have the same content."""
    data, network, device = _receive(config, received[0])
    model = network.model
    if cohort.why_not(model, config.local) is not None:
        return None
    number, content = _round(received[0]), _content(received[0])
    drawn = [_samples(config, data, device, (number, _client(c))) for c in contexts]
    if not cohort.fits(drawn):
        return None
    conditions = [draw_conditions(config.local, config.seed, _client(c)) for c in contexts]
    alike: dict[tuple[int, int], list[int]] = {}  # those who may stand in one stack
    for k, own in enumerate(conditions):
        alike.setdefault((own.batch_size, own.epochs), []).append(k)
    replies: dict[int, Message] = {}
    for together in alike.values():
        order = sorted(together, key=lambda k: -len(drawn[k]))
        stack = cohort.Stack(model, len(order))
        views = [stack.client(i) for i in range(len(order))]
        local = [_local_run(config, contexts[k]) for k in order]
        objectives = [_objectives(v, content, own) for v, own in zip(views, local, strict=True)]
        if any(not o.stackable for own in objectives for o in own):
            return None
        model.train()
        samples = [drawn[k] for k in order]
        with scaled(model, _rate(received[0])):
            losses = cohort.train_stack(
                stack, samples, config.local, [conditions[k] for k in order], objectives
            )
        received_state = network.state()
        for i, k in enumerate(order):
            weights = {name: views[i].get(name, t) for name, t in received_state.items()}
            replies[k] = _reply(
                received[k],
                contexts[k],
                weights,
                len(samples[i]),
                losses[i],
                objectives[i],
                local[i],
            )
    return [replies[k] for k in range(len(received))]


def _evaluate(config: Config, message: Message, client: int) -> Message:
    """Score the received model on the client's own hold-out; no samples, no weight."""
    data, network, device = _receive(config, message)
    _, held = data.split(client)
    score = evaluate(
        network.model,
        data.images.train.pixels[held],
        data.images.train.labels[held],
        data.images,
        device,
        config.evaluation.batch_size,
    )
    metrics = MetricRecord(
        {
            messages.NUM_EXAMPLES: score.examples,
            messages.ACCURACY: score.accuracy,
            messages.LOSS: score.loss,
        }
    )
    return Message(RecordDict({messages.METRICS: metrics}), reply_to=message)


app = build()
