"""The ClientApp: trains and evaluates the model it is sent on its own share of the data."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Context, Error, Message, MetricRecord, RecordDict

from clients import cohort
from clients.borrowed import borrowed
from clients.fisher import asks_for_fisher, fisher_if_asked
from clients.memory import alike_but_for_memory, recalled
from clients.node import client_of as _client
from clients.node import introduce
from clients.privacy import asks_to_clip, clip_if_asked, noise_if_wished
from clients.received import (
    Received,
    conditions_of,
    deadline_of,
    in_time,
    rate_of,
    receive,
    round_of,
)
from clients.replying import classes_of, objectives_of, reply_with
from clients.samples import samples_of, seen
from clients.scaling import scaled
from clients.training import Samples, train_augmented
from fedwsa import seeding
from fedwsa.algorithms.memory.client import LostMemory
from fedwsa.algorithms.objective import LocalRun
from fedwsa.config.component import ConfigError
from fedwsa.data.evaluation import evaluate, measure_statistics
from fedwsa.models import state as model_state
from fedwsa.remembered import enter
from fedwsa.schema.compose import from_run_config
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.config import Config
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


def _train(config: Config, message: Message, context: Context, received: Received) -> Message:
    client, model, content = _client(context), received.network.model, received.content
    key = (round_of(message), client)
    samples = samples_of(config, received, key)
    conditions = conditions_of(config, content, client)
    conditions = in_time(conditions, config, received.data, message, client)
    local = LocalRun(conditions.lr, config.local.momentum, received.state, len(samples))
    objectives = objectives_of(config, received.network.weights(), content, local)
    # Dropout draws from the global generator: seeded for this client and round, put back after.
    with seeding.seeded(config.seed, "dropout", *key), scaled(model, rate_of(message)):
        drawn = seeding.generator(config.seed, "weight augmentation", *key)
        loss = train_augmented(model, samples, config.local, conditions, objectives, drawn)
    random = seeding.generator(config.seed, "fisher", *key)
    prepare, weights = received.data.whole.prepare, received.network.state()
    more = fisher_if_asked(model, samples.inputs, samples.labels, prepare, content, random)
    classes = classes_of(content, samples, received.data.whole.classes)
    return reply_with(
        config, message, context, weights, content, loss, objectives, local, more, classes
    )


def _train_together(
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
    number, clients = round_of(received[0]), [_client(context) for context in contexts]
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
        if stacked is None:
            return None
        replies |= dict(zip(order, stacked, strict=True))
    return [replies[k] for k in range(len(received))]


def _trained_alone(config: Config, message: Message, first: Received) -> bool:
    """Whether the run or the message asks for what stacked models cannot do."""
    return (
        deadline_of(message) is not None
        or messages.PERSONAL in first.content
        or asks_for_fisher(first.content)  # of each model by itself
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
) -> list[Message] | None:
    """Train clients in one stack, those with most samples first; None: an objective cannot be."""
    model, content, start = first.network.model, first.content, first.network.state()
    stack = cohort.Stack(model, len(received), padded)
    views = [stack.client(i) for i in range(len(received))]
    local = [
        LocalRun(own.lr, config.local.momentum, recalled(message, context), len(samples))
        for own, message, context, samples in zip(
            conditions, received, contexts, drawn, strict=True
        )
    ]
    objectives = [
        objectives_of(config, view, content, own) for view, own in zip(views, local, strict=True)
    ]
    if any(not o.stackable for own in objectives for o in own):
        return None
    with borrowed(model), scaled(model.train(), rate_of(received[0])):
        losses = cohort.train_stack(stack, drawn, config.local, conditions, objectives)
    return [
        reply_with(
            config,
            received[i],
            contexts[i],
            {name: views[i].get(name, tensor) for name, tensor in start.items()},
            content,
            losses[i],
            objectives[i],
            local[i],
            classes=classes_of(content, drawn[i], first.data.whole.classes),
        )
        for i in range(len(received))
    ]


def _evaluate(config: Config, message: Message, context: Context) -> Message:
    """Score the received model on the client's own hold-out; no samples, no weight.

    Statistics of static norms are measured on its own training samples first.
    """
    received = receive(config, message, context)
    data, network, device = received.data, received.network, received.device
    own = seen(config, data, _client(context), held=True)
    with borrowed(network.model):
        if len(own) and model_state.measured(network.model):
            trained_on = seen(config, data, _client(context), held=False)
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
