"""Strategies around strategies, as Flower's privacy wrappers are, and FedWSA."""

from __future__ import annotations

from collections.abc import Iterator

from flwr.serverapp.strategy import Strategy


def chain(strategy: Strategy) -> Iterator[Strategy]:
    """The strategy, then what it wraps, to the innermost."""
    inner: object = strategy
    while isinstance(inner, Strategy):
        yield inner
        inner = getattr(inner, "strategy", None)
