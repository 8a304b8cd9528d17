"""What an attack is, and who takes part in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fedwsa import seeding
from fedwsa.config.component import Component, ConfigError, build
from fedwsa.data.examples import Examples, LabelledData


@dataclass(frozen=True, eq=False)
class Known:
    """What attackers know of a round: updates, trained weights less those that were received.

    Attributes
    ----------
    own : Tensor
        Those that the M attackers would send if they were honest: ``(M, D)``.
    honest : Tensor
        Those of the other clients: ``(H, D)``. Only an attack that its paper calls omniscient
        looks at them.
    random : torch.Generator
        Keyed by (seed, round).
    """

    own: Tensor
    honest: Tensor
    random: torch.Generator

    @property
    def all(self) -> Tensor:
        """Those of all clients, as if all were honest: ``(M + H, D)``."""
        return torch.cat([self.own, self.honest])


class Attack(ABC):  # noqa: B024  (its kinds have the abstract methods)
    """What some of the clients do."""

    def idle(self, clients: int, attackers: int) -> str | None:
        """Why it does nothing with so many attackers among the clients of a round, if so."""
        return None


class ModelAttack(Attack):
    """Attackers train as all do, and send something else."""

    @abstractmethod
    def forge(self, known: Known) -> Tensor:
        """What they send: updates ``(M, D)``, or one ``(D,)`` for all of them."""


class DataAttack(Attack):
    """Attackers train on other examples than theirs, and send what comes of it."""

    def require(self, data: LabelledData) -> None:
        """Refuse data that it cannot poison.

        Raises
        ------
        ValueError
            Begins with the key of the configuration.
        """

    def aimed(self, test: Examples) -> Examples | None:
        """Test examples with the labels that it wants to be answered; None: it wants none."""
        return None

    @abstractmethod
    def poison(self, own: Examples, classes: int, random: torch.Generator) -> Examples:
        """The examples that an attacker trains on in a round."""


class NoAttack(ModelAttack):
    """Everybody is honest."""

    def forge(self, known: Known) -> Tensor:
        """The honest updates."""
        return known.own


def attackers(count: int, share: float, seed: int) -> frozenset[int]:
    """Which of so many clients attack: a share of them, drawn by the seed."""
    order = torch.randperm(count, generator=seeding.generator(seed, "attackers"))
    return frozenset(order[: round(share * count)].tolist())


def open_attack(component: Component) -> ModelAttack | DataAttack:
    """The attack that the configuration names.

    Raises
    ------
    ConfigError
        If there is none at the path, or an argument is wrong.
    """
    attack = build(component, "attack")
    if not isinstance(attack, ModelAttack | DataAttack):
        raise ConfigError(
            f"attack._target_: {component.target} is no subclass of "
            f"{ModelAttack.__module__}.ModelAttack or DataAttack"
        )
    return attack
