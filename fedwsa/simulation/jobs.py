"""Messages as jobs for workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import ray
from flwr.app import ArrayRecord, Message
from ray import ObjectRef

from fedwsa.simulation.orders import Job, Order
from fedwsa.simulation.reduce import Reduction
from fedwsa.simulation.schedule import plan
from fedwsa.simulation.transport import PackedRecord, Record, each, pack_record

_Content = dict[str, PackedRecord | ObjectRef[PackedRecord]]


class Workers(Protocol):
    """What planning jobs needs to know of a pool."""

    @property
    def size(self) -> int:
        """How many workers there are."""

    def outstanding(self, node: int) -> int:
        """How many messages to a node are on the way."""


class Parcels:
    """The messages of a call with their contents in the store.

    Records that several of them share are stored once.

    Parameters
    ----------
    messages
        The messages.
    reduction
        How to average the replies; None: they are not averaged.
    cohort
        How many clients a worker may train at once.
    """

    def __init__(
        self, messages: Sequence[Message], reduction: Reduction | None, cohort: int
    ) -> None:
        self._reduction, self._cohort = reduction, cohort
        distinct = {id(message.content): message.content for message in messages}
        places = {key: i for i, key in enumerate(distinct)}
        self._place = [places[id(message.content)] for message in messages]
        stored: dict[int, PackedRecord | ObjectRef[PackedRecord]] = {}

        def store(record: Record) -> PackedRecord | ObjectRef[PackedRecord]:
            if id(record) not in stored:
                packed = pack_record(record)
                stored[id(record)] = ray.put(packed) if isinstance(record, ArrayRecord) else packed
            return stored[id(record)]

        self._contents: list[_Content] = [each(c, store) for c in distinct.values()]
        self._kinds = self._models() if reduction is not None else None

    def _models(self) -> list[int]:
        """Which model each message sends: those of different arrays have no average."""
        numbers: dict[object, int] = {}
        models = [
            next(record for record in content.values() if isinstance(record, ObjectRef))
            for content in self._contents
        ]
        return [numbers.setdefault(models[place], len(numbers)) for place in self._place]

    def jobs(
        self,
        shells: Sequence[Message],
        partitions: Mapping[int, int],
        work: Callable[[int], float],
        ends: Sequence[float],
        pool: Workers,
    ) -> list[Job]:
        """The jobs, in the order in which they are to be sent.

        A client that has something else to answer first stands alone, so that nobody else waits.

        Parameters
        ----------
        shells
            The messages without their contents.
        partitions
            Of each node.
        work
            What a partition has to do.
        ends
            When the time of each message is over, by ``time.monotonic()``.
        pool
            Who gets them.
        """
        orders: list[Order] = []
        first: list[int] = []  # as indices
        later: list[int] = []
        seen: set[int] = set()
        for i, (message, place) in enumerate(zip(shells, self._place, strict=True)):
            node = message.metadata.dst_node_id
            orders.append(Order(message, partitions.get(node, -1), place, ends[i]))
            if node in partitions:
                free = node not in seen and not pool.outstanding(node)
                (first if free else later).append(i)
                seen.add(node)
        kinds = None if self._kinds is None else [self._kinds[i] for i in first]
        planned = plan([work(orders[i].partition) for i in first], pool.size, kinds)
        chosen = [[first[k] for k in job] for job in planned] + [[i] for i in later]
        return [self._job([orders[i] for i in job]) for job in chosen]

    def _job(self, orders: Sequence[Order]) -> Job:
        """A job with only the contents that its orders need."""
        needed = sorted({order.content for order in orders})
        place = {content: i for i, content in enumerate(needed)}
        moved = [
            o
            if place[o.content] == o.content
            else Order(o.message, o.partition, place[o.content], o.end)
            for o in orders
        ]
        return Job(moved, [self._contents[i] for i in needed], self._reduction, self._cohort)
