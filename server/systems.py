"""What the simulated devices make of a round: who is there, who answers, what it costs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedwsa.config.blame import blaming
from fedwsa.config.component import ConfigError
from fedwsa.data.federated import FederatedData
from fedwsa.fleet import systems
from fedwsa.fleet.systems import Task
from fedwsa.fleet.traces import Trace, open_trace
from fedwsa.models.flops import training_flops
from fedwsa.schema.config import Config
from fedwsa.schema.fleet import Fleet
from fedwsa.simulation.reduce import AveragedReplies
from fedwsa.wire import messages
from fedwsa.wire.names import CONFIG, DEADLINE, WIRE_BYTES
from server.sizes import SizedModels

logger = logging.getLogger("fedwsa")


@dataclass(frozen=True)
class Plan:
    """What becomes of the clients of a round.

    Attributes
    ----------
    sent : list of Message
        The instructions that reach a client that will answer.
    tasks : dict of int to Task
        What each client of the cohort was asked for.
    steps : dict of int to int
        How many steps each one takes that will answer.
    dropped : list of int
        Clients that give no answer.
    late : list of int
        Clients that the deadline hits: without an answer, or with fewer steps than asked for.
    """

    sent: list[Message]
    tasks: dict[int, Task]
    steps: dict[int, int]
    dropped: list[int]
    late: list[int]


@dataclass(frozen=True)
class Costs:
    """What the training of a round cost.

    Attributes
    ----------
    bytes_down : int
        Arrays and metrics sent to the cohort.
    bytes_up : int
        And received, in the answers that count.
    seconds : float
        Simulated, until the slowest of them was there, or the deadline.
    flops_per_client : float or None
        Mean over them.
    """

    bytes_down: int
    bytes_up: int
    seconds: float
    flops_per_client: float | None


class Systems:
    """The devices of a run's clients.

    Parameters
    ----------
    config
        The run.
    data
        Says how many samples each client has.
    sizes
        And which model.
    """

    def __init__(self, config: Config, data: FederatedData, sizes: SizedModels) -> None:
        self._wish, self._seed = config.clients, config.seed
        self._data, self._of_client = data, sizes.of_client
        fleet, shape, classes = Fleet(config), data.whole.shape, data.whole.classes
        self._flops = {
            size: training_flops(config.model_of(size), shape, classes) for size in sizes.models
        }
        self._device, self._conditions = cache(fleet.device), fleet.conditions
        self._batches = cache(self._count_batches)
        self._trace = trace = _open_trace(config)
        self._stays = lru_cache(2)(
            lambda clock: np.zeros(0) if trace is None else trace.stays(clock)
        )

    def _count_batches(self, client: int) -> list[int]:
        """Sizes of the batches of a whole training."""
        return self._conditions(client).batches(len(self._data.split(client)[0]))

    def waits(self, clock: float) -> float:
        """Simulated seconds until somebody is there."""
        return 0.0 if self._trace is None else self._trace.comes(clock) - clock

    def there(self, number: int, clock: float) -> Collection[int]:
        """The clients that are there in a round, which begins at a moment."""
        if self._trace is not None:
            return frozenset(np.flatnonzero(self._stays(clock)).tolist())
        share = systems.share_of_round(self._wish.availability, number)
        if share >= 1:
            return range(self._wish.count)
        return frozenset(systems.available(self._seed, number, self._wish.count, share))

    def leaves(self, client: int, clock: float, seconds: float) -> bool:
        """Whether a client that begins at a moment is off before so many seconds are over."""
        return self._trace is not None and bool(self._stays(clock)[client] < seconds)

    def examples(self, client: int) -> int:
        """How many samples a client trains on."""
        return len(self._data.split(client)[0])

    def seconds(self, client: int) -> float:
        """What a whole training takes a client, beside what it sends and receives."""
        task = self.task(client, 0)
        return task.seconds(task.steps, 0)

    def task(self, client: int, down: int) -> Task:
        """A client's whole training, for which it is sent so many bytes."""
        flops = self._flops[self._of_client[client]]
        return Task(self._device(client), down, flops, self._batches(client))

    def plan(
        self,
        number: int,
        instructions: Sequence[Message],
        client_of: Callable[[int], int],
        clock: float = 0.0,
    ) -> Plan:
        """Who of a cohort will answer; where clients stop in time, they are told the deadline.

        Parameters
        ----------
        instructions
            Of the cohort, by the strategy.
        client_of
            Node id → client.
        clock
            When the round begins: who is off before it is done gives no answer.
        """
        wish, deadline = self._wish, self._wish.deadline
        plan = Plan([], {}, {}, [], [])
        sizes: dict[int, int] = {}  # many messages share a content
        for message in instructions:
            content, client = message.content, client_of(message.metadata.dst_node_id)
            if id(content) not in sizes:
                sizes[id(content)] = messages.payload(content)
            task = self.task(client, sizes[id(content)])
            plan.tasks[client] = task
            gone = self.leaves(client, clock, task.seconds(task.steps, task.down))
            if gone or systems.drops_out(self._seed, number, client, wish.dropout):
                plan.dropped.append(client)
                continue
            steps = task.steps if deadline is None else task.steps_within(deadline)
            if steps < task.steps:
                plan.late.append(client)
            if steps == task.steps or (wish.late == "cut" and steps):
                plan.steps[client] = steps
                plan.sent.append(message)
        for clients in (plan.dropped, plan.late):
            clients.sort()
        if wish.cuts and deadline is not None:
            messages.change_contents(plan.sent, lambda plain: _with_deadline(plain, deadline))
        if not plan.sent and plan.late:
            fastest = min(task.seconds(task.steps, task.down) for task in plan.tasks.values())
            logger.warning(
                "round %d: nobody makes the deadline of %g s; the fastest of the cohort needs %.3g",
                number,
                deadline,
                fastest,
            )
        return plan

    def costs(
        self,
        plan: Plan,
        replies: Sequence[Message],
        usable: Collection[int],
        client_of: Callable[[int], int],
    ) -> Costs:
        """What a round cost, of the answers that count.

        Parameters
        ----------
        replies
            All that came. Of those that were averaged where the clients are, an answer was as
            large as the arrays that it was averaged with, those that its client was sent.
        usable
            Clients whose answers count.
        """
        sent = {client_of(m.metadata.dst_node_id): m.content for m in plan.sent}
        rows = replies.rows if isinstance(replies, AveragedReplies) else replies
        up: dict[int, int] = {}
        for reply in rows:
            client = client_of(reply.metadata.src_node_id)
            if client not in usable:
                continue
            up[client] = messages.sent_up(reply.content)
            if rows is not replies and WIRE_BYTES not in messages.reply_metrics([reply])[0]:
                arrays = messages.model_arrays(sent[client])
                up[client] += messages.array_bytes(arrays) if arrays is not None else 0
        seconds = [plan.tasks[k].seconds(plan.steps[k], size) for k, size in up.items()]
        slowest, deadline = max(seconds, default=0.0), self._wish.deadline
        if not up and self._trace is not None:  # the server waits before it asks others
            tasks = plan.tasks.values()
            slowest = max((task.seconds(task.steps, task.down) for task in tasks), default=0.0)
        if deadline is not None:
            # For a missing answer the server waits as long as it may. Who answers was in time, if
            # its metrics took a moment more than what it was sent.
            slowest = deadline if len(up) < len(plan.tasks) else min(slowest, deadline)
        flops = [plan.tasks[k].flops(plan.steps[k]) for k in sorted(up)]
        return Costs(
            bytes_down=sum(task.down for task in plan.tasks.values()),
            bytes_up=sum(up.values()),
            seconds=slowest,
            flops_per_client=sum(flops) / len(flops) if flops else None,
        )


def _open_trace(config: Config) -> Trace | None:
    """When the devices are on, if that goes by the clock.

    Raises
    ------
    ConfigError
        If the file cannot be read as one.
    """
    wish = config.clients
    if not wish.traced:
        return None
    where = f"clients.availability: {wish.availability.get('file')}: "
    with blaming(ConfigError, where, kinds=False):
        return open_trace(wish.availability, config.seed, wish.count)


def _with_deadline(content: RecordDict, deadline: float) -> RecordDict:
    # An addition to the one ConfigRecord, which client mods of Flower want.
    key, config = next(iter(content.config_records.items()), (CONFIG, ConfigRecord()))
    told = ConfigRecord({**config, DEADLINE: deadline})
    return RecordDict({**content, key: told})
