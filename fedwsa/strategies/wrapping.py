"""Strategies around strategies, as Flower's privacy wrappers are, and FedWSA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

_HOOKS = (
    "configure_train",
    "aggregate_train",
    "configure_evaluate",
    "aggregate_evaluate",
    "summary",
)


class Wrapper(Strategy):
    """A strategy around another, to which it leaves what it does not do itself."""

    strategy: Strategy

    def __getattr__(self, name: str) -> Any:
        """What a wrapper has not, as the wrapped strategy has it: methods of its own, settings."""
        # Special names, and those of an object that is being copied, are its own.
        if name.startswith("__") or "strategy" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.strategy, name)

    def start(self, *given: Any, **named: Any) -> Result:
        """As Flower's, or, where a wrapped strategy has a loop of its own, that around our hooks.

        Its loop runs on the wrapped strategy, with what that keeps, and calls the outermost hooks.
        """
        for part in chain(self.strategy):
            if type(part).start not in (Strategy.start, Wrapper.start):
                return self._facing(part).start(*given, **named)
        return super().start(*given, **named)

    def _facing(self, part: Strategy) -> Strategy:
        """A strategy that is ``part``, attributes and all, but for the hooks, which are ours."""

        def ours(name: str) -> Callable[..., Any]:
            return lambda _, *given, **named: getattr(self, name)(*given, **named)

        kind = type(part)
        face: Any = object.__new__(type(kind.__name__, (kind,), {n: ours(n) for n in _HOOKS}))
        face.__dict__ = vars(part)
        return cast(Strategy, face)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the wrapped strategy."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Leave it to the wrapped strategy."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the wrapped strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Leave it to the wrapped strategy."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the settings of the wrapped strategy."""
        self.strategy.summary()


def chain(strategy: Strategy) -> Iterator[Strategy]:
    """The strategy, then what it wraps, to the innermost."""
    inner: object = strategy
    while isinstance(inner, Strategy):
        yield inner
        inner = getattr(inner, "strategy", None)
