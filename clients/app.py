"""The ClientApp: trains and evaluates the model it is sent on its own share of the data."""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from clients.training import draw_conditions, train
from fedwsa import messages, seeding
from fedwsa.config import Config, from_run_config
from fedwsa.data.federated import FederatedData, open_federated
from fedwsa.data.images import crop_flip, normalise
from fedwsa.devices import resolve_device
from fedwsa.evaluation import evaluate
from fedwsa.models import build_model
from fedwsa.objectives import Objective, find_record
from fedwsa.objectives.proximal import Proximal
from fedwsa.objectives.scope import ScopeAlignment

OBJECTIVES: tuple[type[Objective], ...] = (ScopeAlignment, Proximal)
"""Local objectives; each does nothing unless the server's message asks for it."""


def build(config: Config | None = None) -> ClientApp:
    """A ClientApp for a composed run.

    Parameters
    ----------
    config
        None: composed from the run's ``overrides``, as on the command line.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Say which partition this node has."""
        record = ConfigRecord({messages.PARTITION_ID: _client(context)})
        return Message(RecordDict({messages.CONFIG: record}), reply_to=message)

    @app.train()
    def train_client(message: Message, context: Context) -> Message:
        run = config or from_run_config(context.run_config)
        return _train(run, message, _client(context))

    @app.evaluate()
    def evaluate_client(message: Message, context: Context) -> Message:
        run = config or from_run_config(context.run_config)
        return _evaluate(run, message, _client(context))

    return app


def _client(context: Context) -> int:
    return int(context.node_config[messages.PARTITION_ID])


def _receive(config: Config, message: Message) -> tuple[FederatedData, nn.Module, str]:
    """The data, and the model with the received weights on its device."""
    data = open_federated(*config.data_key)
    device = resolve_device(config.device)
    model = build_model(config.model, data.images.shape, data.images.classes, config.seed)
    arrays = messages.only_arrays(message.content)
    if arrays is None:
        raise ValueError("the message must hold exactly one ArrayRecord")
    messages.load_arrays(model, arrays)
    return data, model.to(device), device


def _train(config: Config, message: Message, client: int) -> Message:
    data, model, device = _receive(config, message)
    chosen, _ = data.split(client)
    instructions = find_record(message.content, messages.SERVER_ROUND)
    if instructions is None:
        raise ValueError(f"the message names no {messages.SERVER_ROUND}")
    key = (int(instructions[messages.SERVER_ROUND]), client)
    random = seeding.generator(config.seed, "train", *key)

    def prepare(pixels: Tensor) -> Tensor:
        if config.dataset.augment == "crop_flip":
            pixels = crop_flip(pixels, random)
        return normalise(pixels, data.images.mean, data.images.std)

    objectives = [kind(model, message.content) for kind in OBJECTIVES]
    # Dropout draws from the global generator: seeded for this client and round, put back after.
    with seeding.seeded(config.seed, "dropout", *key):
        loss = train(
            model,
            data.images.train.pixels[chosen].to(device),
            data.images.train.labels[chosen].to(device),
            prepare,
            config.local,
            draw_conditions(config.local, config.seed, client),
            objectives,
            random,
        )
    metrics = MetricRecord({messages.NUM_EXAMPLES: len(chosen), messages.TRAIN_LOSS: loss})
    for objective in objectives:
        metrics.update(objective.end())
    arrays = messages.to_arrays(messages.travelling_state(model))
    content = RecordDict({messages.ARRAYS: arrays, messages.METRICS: metrics})
    return Message(content, reply_to=message)


def _evaluate(config: Config, message: Message, client: int) -> Message:
    """Score the received model on the client's own hold-out; no samples, no weight."""
    data, model, device = _receive(config, message)
    _, held = data.split(client)
    score = evaluate(
        model,
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
