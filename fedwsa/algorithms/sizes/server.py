"""Federated averaging over clients whose models have different sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import ClassVar, Literal, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore import log
from torch import Tensor

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.run_facts import RunFacts
from fedwsa.algorithms.sizes.asking import said_sizes
from fedwsa.algorithms.sizes.class_rows import by_class, once
from fedwsa.algorithms.sizes.layout import Layout, Shapes
from fedwsa.algorithms.sizes.overlap import by_row, overlap
from fedwsa.algorithms.sizes.requirements import require_no_classes_told, warn_of_learned
from fedwsa.algorithms.traits import Traits
from fedwsa.algorithms.wrapping import chain
from fedwsa.fleet.size_rules import hidden_rate
from fedwsa.models import exchange
from fedwsa.models.architecture import (
    Axes,
    Axis,
    Pick,
    Window,
    first_units,
    take,
    window,
)
from fedwsa.scope.weight_scope import choose
from fedwsa.wire import messages
from fedwsa.wire.names import CLASS_ROWS, CLASSES, SIZE, SIZE_RATE

Told = str | float | list[str] | list[int]
"""A setting in a message."""

Weighted = Literal["examples", "clients"]


class ForSizes(Sampling, total=False):
    """What strategies for sizes take beside shapes and axes, as :class:`SizedFedAvg` has them."""

    size_of: Callable[[int], str] | None
    weighted: Weighted
    scaler: bool
    class_rows: bool
    classifier: Sequence[str]


class SizedFedAvg(FedAvg):
    """FedAvg for clients of several sizes: each is sent, and trains, a part of one large model.

    The global arrays are those of the largest size. A client gets the entries that its shapes
    have room for, chosen by :meth:`pick`; each entry becomes the average over the clients that
    had it, and keeps its value where none did. With one size this is FedAvg, to the bit.

    Arrays that match ``own`` are not shared: each size has its own, averaged among its clients,
    and the global arrays hold them as ``SIZE/NAME``.

    A subclass chooses the entries (:meth:`pick`), or what is sent and how it comes together
    (:meth:`split`, :meth:`join`, :meth:`plain`).

    Parameters
    ----------
    shapes : mapping
        Size → name of an array → its shape, for all arrays that travel. One size must be the
        largest: every shared array fits into its array of that name.
    axes : mapping, optional
        How the units of the largest size lie in its arrays, see
        :class:`fedwsa.models.architecture.Axis`; needed for attention heads and for what reads
        flattened channels.
    size_of : callable, optional
        Node id → size. None: each node is asked, once, by a QUERY message; its ClientApp answers
        with a ConfigRecord that has ``size``.
    own : str, optional
        A regular expression, matched at the beginning of names.
    weighted : {"examples", "clients"}
        Whether a client counts by its examples, as FedAvg has it, or each client once.
    scaler : bool
        Ask the clients to divide the activations of hidden layers by the size's rate in training,
        which the message names as ``size-rate``, so that a part of the network is as loud as the
        whole. Off by default, since a norm behind a layer undoes it.
    class_rows : bool
        Average a row of the classifier over the clients that have samples of its class, and keep
        it where none has; averaged over all, two of ten classes a client dilute it five times. See
        :func:`fedwsa.algorithms.sizes.class_rows.by_class`. Where all have all, nothing changes.
    classifier : sequence of str
        Names of the arrays that have a row for each class.
    sampling
        As for Flower's FedAvg.

    Raises
    ------
    ValueError
        If no size is the largest, or a shape holds no whole units; the first misfit is named.
    """

    traits: ClassVar[Traits] = Traits(
        # Partial averages serve as well as replies, each of one size.
        averages_by=lambda s: s.weighted_by_key if s.weighted == "examples" else None,
        wants=("shapes", "axes", "classifier"),
        whole_models=False,
        requires=True,
        transient=("_arrays", "size_of", "axes", "_laid"),  # set in each round, and for each run
    )
    most_alike: ClassVar[str] = "each must fit into the largest"

    def __init__(
        self,
        shapes: Shapes,
        *,
        axes: Axes | None = None,
        size_of: Callable[[int], str] | None = None,
        own: str | None = None,
        weighted: Weighted = "examples",
        scaler: bool = False,
        class_rows: bool = True,
        classifier: Sequence[str] = (),
        **sampling: Unpack[Sampling],
    ) -> None:
        super().__init__(**sampling)
        self.weighted, self.scaler = choose(Weighted, weighted, "weighted"), scaler
        self.size_of = size_of
        self.classifier = tuple(classifier) if class_rows else ()
        try:
            self._own = None if own is None else re.compile(own)
        except re.error as error:
            raise ValueError(f"own={own!r} is not a regular expression: {error}") from None
        self.axes: Axes = axes or {}
        self._lay_out(shapes)
        self._said: dict[int, str] = {}  # what nodes answered
        self._arrays: ArrayRecord | None = None

    def look_sizes_up(self, size_of: Callable[[int], str]) -> None:
        """Take a node's size from there, for the run that begins, instead of asking the node."""
        self.size_of = size_of

    def require(self, run: RunFacts) -> None:
        """Refuse to ask who has which class in a private run; warn of a scaler that is too much."""
        require_no_classes_told(self, self.classifier, run)
        if self.scaler:
            warn_of_learned(run)

    def pick(self, server_round: int) -> Pick:
        """Which units a smaller size has in a round, the same at sending and at averaging."""
        return first_units

    # --- what is whose -----------------------------------------------------------------------

    def is_own(self, name: str) -> bool:
        """Whether each size has an array of this name for itself."""
        return self._own is not None and self._own.match(name) is not None

    def key(self, size: str, name: str) -> str:
        """Where the global arrays hold a size's array."""
        return f"{size}/{name}" if self.is_own(name) else name

    def axes_of(self, size: str, name: str) -> Mapping[int, Axis]:
        """How units lie in an array of a size."""
        return self.axes.get(name, {})

    def rows(self, size: str) -> Sequence[str]:
        """Which arrays of a size have a row for each class, if these are averaged by class."""
        return self.classifier

    @property
    def has_own(self) -> bool:
        """Whether there are arrays that sizes do not share."""
        return any(self.is_own(name) for of in self.shapes.values() for name in of)

    def _lay_out(self, shapes: Shapes) -> None:
        """Take these shapes."""
        self._laid = Layout(shapes, self.axes_of, self.key, self.most_alike)
        self.shapes, self.largest = self._laid.shapes, self._laid.largest

    @property
    def layout(self) -> Layout:
        """Which entries of which global array each size has."""
        if self._laid.shapes is not self.shapes:  # these come from a checkpoint
            self._lay_out(self.shapes)
        return self._laid

    def _chosen(self, size: str, name: str, server_round: int) -> list[Tensor | None]:
        """Which entries of a global array a size has in a round."""
        return self.layout.chosen(size, name, self.pick(server_round))

    def rate(self, size: str) -> float:
        """Hidden units of a size, as a part of the largest one's, for the scaler."""
        return hidden_rate(self.shapes[size], self.shapes[self.largest])

    # --- taking apart, putting together ------------------------------------------------------

    def split(self, arrays: ArrayRecord, size: str, server_round: int) -> ArrayRecord:
        """What a client of a size is sent, out of the global arrays."""
        tensors = messages.to_tensors(arrays)
        parts = {}
        for name in self.shapes[size]:
            tensor, chosen = tensors[self.key(size, name)], self._chosen(size, name, server_round)
            whole = all(index is None for index in chosen)
            parts[name] = tensor if whole else take(tensor, chosen)
        return messages.to_arrays(parts)

    def plain(self, arrays: ArrayRecord, size: str, server_round: int) -> ArrayRecord:
        """The state of a size's model; here what its clients are sent."""
        return self.split(arrays, size, server_round)

    def aligned(self, arrays: ArrayRecord, server_round: int) -> ArrayRecord:
        """The arrays whose scopes FedWSA aligns: those of the largest model."""
        return self.plain(arrays, self.largest, server_round)

    def join(self, states: Mapping[str, Mapping[str, Tensor]]) -> ArrayRecord:
        """Global arrays to begin with: the largest size's, and what each has for itself.

        Parameters
        ----------
        states
            Size → state of its model.
        """
        joined = dict(states[self.largest])
        for size, state in states.items():
            for name in filter(self.is_own, self.shapes[size]):
                joined.pop(name, None)
                joined[self.key(size, name)] = state[name]
        return messages.to_arrays(joined)

    def learn_from(self, learned: Mapping[str, Tensor]) -> None:
        """Take what the largest size's initial weights were made of; here they are enough."""

    def _check_global(self, arrays: ArrayRecord) -> None:
        expected = self.layout.wholes
        given = {key: tuple(array.shape) for key, array in arrays.items()}
        for key in sorted(expected.keys() | given.keys()):
            if given.get(key) != expected.get(key):
                raise ValueError(
                    f"the global arrays have {key} as {given.get(key, 'nothing')}, not as "
                    f"{expected.get(key, 'nothing')}; join() makes them from a state per size"
                )

    # --- rounds ------------------------------------------------------------------------------

    def summary(self) -> None:
        """Log the sizes, then FedAvg's settings."""
        log(INFO, "\t├──> %s: sizes %s", type(self).__name__, ", ".join(self.shapes))
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Give each client that FedAvg samples its part of the arrays.

        Raises
        ------
        ValueError
            If the arrays are not those of the sizes, or no node says its size.
        """
        self._check_global(arrays)
        self._arrays = arrays
        configured = super().configure_train(server_round, arrays, config, grid)
        return self._parted(configured, arrays, server_round, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Give each client that FedAvg samples its part of the arrays."""
        configured = super().configure_evaluate(server_round, arrays, config, grid)
        return self._parted(configured, arrays, server_round, grid)

    def _parted(
        self, configured: Iterable[Message], arrays: ArrayRecord, server_round: int, grid: Grid
    ) -> list[Message]:
        """The messages with what their size needs; those of a size share one content."""
        wanted = list(configured)
        if self.size_of is None:
            nodes = [message.metadata.dst_node_id for message in wanted]
            self._said |= said_sizes([node for node in nodes if node not in self._said], grid)
        contents: dict[str, RecordDict] = {}
        parted = []
        for message in wanted:
            if (size := self._size(message.metadata.dst_node_id)) is None:
                continue
            if size not in contents:
                config = ConfigRecord({**message.content.config_records[self.configrecord_key]})
                config.update(self.instructions(size, server_round))
                part = self.split(arrays, size, server_round)
                contents[size] = RecordDict(
                    {self.arrayrecord_key: part, self.configrecord_key: config}
                )
            message.content = contents[size]
            parted.append(message)
        if wanted and not parted:
            raise ValueError("no node says its size")
        return parted

    def instructions(self, size: str, server_round: int) -> dict[str, Told]:
        """What a message says beside the model to the clients of a size."""
        said: dict[str, Told] = {SIZE: size}
        if self.classifier:
            said[CLASS_ROWS] = list(self.rows(size))
        if self.scaler:
            said[SIZE_RATE] = self.rate(size)
        return said

    def _size(self, node: int) -> str | None:
        """The size of a node; None, with a warning, if it has none that there is."""
        size = self._said.get(node) if self.size_of is None else self.size_of(node)
        if size in self.shapes:
            return size
        said = "does not say its size" if size is None else f"has size {size}"
        log(WARNING, "node %d %s; there are %s", node, said, ", ".join(self.shapes))
        return None

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average each entry over the clients that have it, and the metrics over all.

        A reply whose arrays are not those of its client's size is left out with a warning.
        """
        groups: dict[str, list[Message]] = {size: [] for size in self.shapes}
        for reply in replies:
            if reply.has_error():
                reason = reply.error.reason
                log(INFO, "\t> error from node %d: %s", reply.metadata.src_node_id, reason)
            elif size := self._checked(reply):
                by_examples = self.weighted == "examples"
                groups[size].append(reply if by_examples else once(reply, self.weighted_by_key))
        # In the order of the sizes, whatever the order of the replies.
        groups = {size: group for size, group in groups.items() if group}
        if not groups or self._arrays is None:
            return None, None
        means: dict[str, dict[str, Tensor]] = {}
        weights: dict[str, float] = {}
        rows: dict[str, Tensor] = {}
        for size, group in groups.items():
            mean, _ = super().aggregate_train(server_round, group)
            assert mean is not None
            means[size] = messages.to_tensors(mean)
            weights[size] = sum(
                messages.number(m, self.weighted_by_key) for m in messages.reply_metrics(group)
            )
            if found := by_class(group, self.rows(size), self.weighted_by_key):
                rows[size] = found[1]
                means[size] |= found[0]
        contents = [reply.content for group in groups.values() for reply in group]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        if metrics is not None:
            metrics.pop(CLASSES, None)
        return self._combine(means, weights, rows, server_round), metrics

    def _checked(self, reply: Message) -> str | None:
        """The size of a reply that can be averaged; None, with a warning, of another."""
        node = reply.metadata.src_node_id
        if (size := self._size(node)) is None:
            return None
        arrays = messages.model_arrays(reply.content)
        given = {} if arrays is None else {k: tuple(a.shape) for k, a in arrays.items()}
        if problem := exchange.mismatched(given, self.shapes[size]):
            log(WARNING, "node %d of size %s is left out: %s", node, size, problem)
            return None
        return size

    def _combine(
        self,
        means: Mapping[str, Mapping[str, Tensor]],
        weights: Mapping[str, float],
        rows: Mapping[str, Tensor],
        server_round: int,
    ) -> ArrayRecord:
        """The averages of the sizes, put together entry by entry."""
        assert self._arrays is not None
        combined = messages.to_tensors(self._arrays)

        def weigh(size: str, name: str) -> float | Tensor:
            if name not in self.rows(size) or not rows:
                return weights[size]
            all_alike = torch.full((len(means[size][name]),), weights[size]).double()
            return by_row(rows.get(size, all_alike), means[size][name])

        parts: dict[str, list[tuple[Tensor, float | Tensor, Window]]] = {}
        for size, mean in means.items():
            for name, tensor in mean.items():
                key = self.key(size, name)
                where = window(self._chosen(size, name, server_round), self.layout.wholes[key])
                parts.setdefault(key, []).append((tensor, weigh(size, name), where))
        for key, of_sizes in parts.items():
            combined[key] = overlap(combined[key], of_sizes)
        return messages.to_arrays(combined)


def sized(strategy: Strategy) -> SizedFedAvg | None:
    """The strategy of sizes in a strategy, itself or what it wraps; None if there is none."""
    return next((part for part in chain(strategy) if isinstance(part, SizedFedAvg)), None)
