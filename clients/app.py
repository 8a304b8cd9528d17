"""The ClientApp: trains and evaluates the model it is sent on its own share of the data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from flwr.app import Context, Error, Message, MetricRecord, RecordDict

from clients.borrowed import borrowed
from clients.node import client_of as _client
from clients.node import introduce
from clients.phases import conditions_in, phases_of
from clients.privacy import clip_if_asked, noise_if_wished
from clients.received import (
    Received,
    conditions_of,
    in_time,
    receive,
    round_of,
)
from clients.replying import Trained, reply_with
from clients.samples import DROPOUT, local_run, samples_of, seen, trained_on
from clients.together import train_together
from clients.training import train_augmented
from fedwsa import seeding
from fedwsa.algorithms.memory.client import LostMemory
from fedwsa.algorithms.objective import overrides
from fedwsa.config.component import ConfigError
from fedwsa.data.evaluation import evaluate, measure_statistics
from fedwsa.models import state as model_state
from fedwsa.remembered import enter
from fedwsa.schema.compose import from_run_config
from fedwsa.schema.config import Config
from fedwsa.schema.fleet import Fleet
from fedwsa.simulation.cohort import CohortApp, CohortReply
from fedwsa.wire.content import find_record
from fedwsa.wire.names import (
    ACCURACY,
    ADAPT,
    CONFIG,
    LOSS,
    LOST_MEMORY,
    METRICS,
    NUM_EXAMPLES,
    REFUSED,
)


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
            answer = RecordDict({CONFIG: introduce(run, message, context)})
        except ConfigError as error:
            return Message(Error(REFUSED, str(error)), reply_to=message)
        return Message(answer, reply_to=message)

    @app.train(mods=[clip_if_asked])
    def train_client(message: Message, context: Context) -> Message:
        run = of_run(context)

        def trained(message: Message, context: Context) -> Message:
            received = receive(run, message, context)
            with borrowed(received.network.model):
                return _train(run, message, context, received)

        try:
            return noise_if_wished(
                run, message, context, trained, round_of(message), _client(context)
            )
        except LostMemory as error:
            return _lost(message, error)

    @app.cohort
    def train_clients(
        received: Sequence[Message], contexts: Sequence[Context]
    ) -> list[Message] | CohortReply | str:
        run = of_run(contexts[0])
        return train_together(run, received, contexts)

    @app.evaluate()
    def evaluate_client(message: Message, context: Context) -> Message:
        run = of_run(context)
        try:
            return _evaluate(run, message, context)
        except LostMemory as error:
            return _lost(message, error)

    return app


def _lost(message: Message, error: LostMemory) -> Message:
    return Message(Error(LOST_MEMORY, str(error)), reply_to=message)


def _train(config: Config, message: Message, context: Context, received: Received) -> Message:
    key, model = (round_of(message), _client(context)), received.network.model
    samples = samples_of(config, received, key)
    phases = phases_of(received.kinds, received.content)
    conditions = conditions_of(config, received.content, key[1], key[0])
    conditions = in_time(conditions, config, received.data, message, key[1])
    local = local_run(config, received, conditions, samples, received.state, key)
    weights = received.network.weights()
    objectives = [kind(weights, received.content, local) for kind in received.kinds]
    # What a model may draw from the global generators: seeded for this, put back after.
    with seeding.seeded(config.seed, DROPOUT, *key), ExitStack() as around:
        for kind in received.kinds:
            around.enter_context(kind.during(model, received.content))
        drawn = seeding.generator(config.seed, "weight augmentation", *key)
        number = seeding.key(config.seed, DROPOUT, *key)
        each = conditions_in(phases, conditions, len(samples))
        for k, (phase, own) in enumerate(zip(phases, each, strict=True)):
            if own.steps != 0 or k == 0:
                drawing = samples_of(config, received, key, k) if k else samples
                how = (config.local, own, objectives, drawn, number, phase.trains)
                loss = train_augmented(model, drawing, *how)
    for objective in objectives:
        objective.after(model)
    local.trained = received.network.state()
    trained = Trained(loss, objectives, local)
    return reply_with(config, message, context, trained)


def _evaluate(config: Config, message: Message, context: Context) -> Message:
    """Score the received model on the client's own hold-out; no samples, no weight."""
    received = receive(config, message, context, evaluating=True)
    data, network, device = received.data, received.network, received.device
    own = seen(config, data, _client(context), held=True)
    with borrowed(network.model):
        if len(own):
            _settle(config, message, context, received)
            _adapt(config, message, context, received)
        score = evaluate(network.model, own, data.whole, device, config.evaluation.batch_size)
    metrics = MetricRecord(
        {
            NUM_EXAMPLES: score.examples,
            ACCURACY: score.accuracy,
            LOSS: score.loss,
        }
    )
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


def _adapt(config: Config, message: Message, context: Context, received: Received) -> None:
    """Train for this evaluation alone, by the task loss, if the message asks for it."""
    if (asked := find_record(message.content, ADAPT)) is None:
        return
    key = (round_of(message), _client(context))
    samples = samples_of(config, received, key)
    if not len(samples):
        return
    usual = Fleet(config).conditions(key[1])  # at the rate with which a schedule begins
    conditions = replace(usual, epochs=int(asked[ADAPT]), steps=None)
    drawn = seeding.generator(config.seed, "weight augmentation", *key)
    number = seeding.key(config.seed, DROPOUT, *key)
    with seeding.seeded(config.seed, DROPOUT, *key):
        train_augmented(
            received.network.model, samples, config.local, conditions, [], drawn, number
        )


def _settle(config: Config, message: Message, context: Context, received: Received) -> None:
    """What comes before an evaluation, on the client's training samples.

    Statistics of static norms are measured on them, too.
    """
    model, device = received.network.model, received.device
    settling = [kind for kind in received.kinds if overrides(kind, "settle")]
    measured = model_state.measured(model)
    if not (settling or measured):
        return
    data, client = received.data, _client(context)
    samples = seen(config, data, client, held=False)
    inputs, labels = samples.inputs.to(device), samples.labels.to(device)
    for kind in settling:
        own = trained_on(config, data, inputs, labels, (round_of(message), client))
        kind.settle(model, received.content, received.state, own)
    if measured:
        measure_statistics(model, samples.inputs, data.whole.prepare, device)


app = build()
