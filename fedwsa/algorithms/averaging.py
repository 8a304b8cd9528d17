"""Which strategies only average, and how they tell it to a grid that can average for them.

A strategy that does nothing with the replies but average them gets the same average from a few
partial averages, so that a round moves a model per worker instead of one per client.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

from flwr.app import Message
from flwr.serverapp.strategy import FedAvg, Strategy

from fedwsa.algorithms.guard.replies import MOST_EXAMPLES, Rules
from fedwsa.algorithms.partial_average import WeightedMean
from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.simulation.reduce import Averaged
from fedwsa.wire.names import NUM_EXAMPLES


class Sampling(TypedDict, total=False):
    """How Flower's FedAvg samples, by its own names; what is left out is as there."""

    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int


def averages_by(strategy: Strategy) -> str | None:
    """The metric by which a strategy averages the replies; None if it may do anything else."""
    by = traits_of(strategy).averages_by
    return by(strategy) if callable(by) else by


def weighs_by(strategy: Strategy) -> str:
    """The metric by which one of Flower's strategies, or one made of it, weights replies."""
    *_, inner = chain(strategy)
    return inner.weighted_by_key if isinstance(inner, FedAvg) else NUM_EXAMPLES


def answers_of(strategy: Strategy) -> tuple[tuple[str, str], ...]:
    """Which array records answer which, under a strategy and what it wraps."""
    return tuple(pair for part in chain(strategy) for pair in traits_of(part).answers)


@contextmanager
def weighing(strategy: FedAvg, key: str) -> Iterator[None]:
    """Let a strategy weight by another metric for once: evaluation keeps its own."""
    usual, strategy.weighted_by_key = strategy.weighted_by_key, key
    try:
        yield
    finally:
        strategy.weighted_by_key = usual


def averaged(
    strategy: Strategy,
    instructions: Iterable[Message],
    numbers: Sequence[str] = (),
    most_examples: float = MOST_EXAMPLES,
) -> list[Message]:
    """The messages, marked as :class:`Averaged` if the strategy allows it."""
    weight = averages_by(strategy)
    if weight is None:
        return list(instructions)
    rules = Rules(weight, tuple(numbers), most_examples, answers_of(strategy))
    return Averaged(instructions, WeightedMean(rules))
