"""Strategies around strategies, as Flower's privacy wrappers are, and FedWSA."""

from __future__ import annotations

import threading
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

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


class _Made(ABCMeta):
    """Marks what is constructed: what is set afterwards may be meant for another."""

    def __call__(cls, *given: Any, **named: Any) -> Any:
        made = super().__call__(*given, **named)
        vars(made)["_made"] = True
        return made


class Wrapper(Strategy, metaclass=_Made):
    """A strategy around another, to which it leaves what it does not do itself."""

    strategy: Strategy

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what a wrapper has; what it has not, and the wrapped strategy has, there."""
        own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if "_made" in vars(self) and not own and hasattr(self.strategy, name):
            setattr(self.strategy, name, value)
        else:
            super().__setattr__(name, value)

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
            if "start" in vars(part) or type(part).start not in (Strategy.start, Wrapper.start):
                with self._called_by(part):
                    return part.start(*given, **named)
        return super().start(*given, **named)

    @contextmanager
    def _called_by(self, part: Strategy) -> Iterator[None]:
        """Put our hooks before those of a strategy, which has its own only within ours."""
        own = {name: getattr(part, name) for name in _HOOKS}
        before = {name: hook for name, hook in vars(part).items() if name in _HOOKS}
        within = threading.local()  # a loop may call hooks in several threads

        def ours(name: str) -> Callable[..., Any]:
            def hook(*given: Any, **named: Any) -> Any:
                if vars(within):
                    return own[name](*given, **named)
                within.ours = True
                try:
                    return getattr(self, name)(*given, **named)
                finally:
                    del within.ours

            return hook

        put = {name: ours(name) for name in _HOOKS}
        vars(part).update(put)
        try:
            yield
        finally:
            for name in [n for n, hook in put.items() if vars(part).get(n) is hook]:
                del vars(part)[name]
            for name, hook in before.items():
                vars(part).setdefault(name, hook)

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
