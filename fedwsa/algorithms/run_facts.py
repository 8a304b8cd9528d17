"""What a run is, as far as a strategy may have to refuse it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from flwr.serverapp.strategy import Strategy
from torch import nn

from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.config.component import ConfigError
from fedwsa.models.inputs import InputShape


@dataclass(frozen=True, eq=False)
class RunFacts:
    """Plain facts about a run, known before its first round.

    Attributes
    ----------
    rounds, epochs : int
        Of the run, and of a client in each.
    cohort : int
        Clients of a round, if all answer.
    attackers : int
        How many of these attack, on average.
    private : bool
        Whether noise is added, by the server or by the clients.
    transforms_weights : bool
        Whether clients transform their kernels as others do images (``local.weight_augmentation``).
    init : str
        Name of the method that makes the initial weights.
    models : mapping of str to Module
        Size → its network, with initial weights.
    shapes : mapping
        Size → name of an array that travels → its shape.
    example_shape : InputShape
        Of one input: (channels, height, width), or (length,) of a text.
    """

    rounds: int
    epochs: int
    cohort: int
    attackers: int
    private: bool
    transforms_weights: bool
    init: str
    models: Mapping[str, nn.Module]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    example_shape: InputShape


class _Requiring(Protocol):
    def require(self, run: RunFacts) -> None: ...


def require(strategy: Strategy, run: RunFacts) -> None:
    """Let a strategy, and each that it wraps, refuse the run.

    Raises
    ------
    ValueError
        In the words of the one that refuses it; they begin with the key of the configuration.
    """
    for part in chain(strategy):
        if not traits_of(part).requires:
            continue
        if not callable(getattr(part, "require", None)):
            name = type(part).__name__
            raise ValueError(f"strategy: {name} says requires=True, and has no method require(run)")
        cast(_Requiring, part).require(run)


def require_no_noise(strategy: Strategy, run: RunFacts) -> None:
    """Refuse a private run for a strategy whose clients say more than the noise covers.

    Raises
    ------
    ConfigError
        Names the strategy.
    """
    if run.private:
        name = type(strategy).__name__
        raise ConfigError(f"strategy: {name} needs more of a client than one noised model")


def require_bearable(name: str, bears: int, run: RunFacts) -> None:
    """Refuse more attackers in a cohort than a defence is made for.

    Raises
    ------
    ValueError
        Says how many there are, and how many it bears.
    """
    if run.attackers > bears:
        raise ValueError(
            f"attack.share: {run.attackers} of the {run.cohort} clients of a round attack, and "
            f"{name} is told to bear {bears}"
        )
