"""Checkpoints: all that the next round depends on, so that a run goes on where it stopped.

Every draw is keyed by (seed, purpose, round, client), so that there is no state of random
generators; the model, what the strategy remembers, and what the clients keep are all.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Protocol, runtime_checkable

from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.config.component import ConfigError
from fedwsa.config.identity import differences
from fedwsa.runfolder import state_files

logger = logging.getLogger("fedwsa")

_KEPT = 2
"""How many checkpoints stay: the one before the newest, should that be damaged."""


@runtime_checkable
class _Ledger(Protocol):
    """What says of itself what is to be kept, as Flower's privacy accountant does."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...


@dataclass
class Checkpoint:
    """A run after a round.

    Attributes
    ----------
    round : int
        That is over.
    arrays : ArrayRecord
        The global model.
    strategy : list of dict
        What the strategy remembers, and what each strategy that it wraps does.
    clients : dict of int to RecordDict
        What clients keep, by partition.
    tally : dict
        What the result sums up over the rounds.
    loop : dict
        What the loop remembers, see :meth:`server.loop.RoundLoop.state`.
    run : dict
        Which run it is of, see :func:`fedwsa.config.identity.described`.
    """

    round: int
    arrays: ArrayRecord
    strategy: list[dict[str, Any]]
    clients: dict[int, RecordDict] = field(default_factory=dict)
    tally: dict[str, float] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a run, in ``checkpoints/`` of its folder.

    Parameters
    ----------
    folder
        Of the run.
    strategy
        As it was made, before the first round. Its memory are its attributes, and those of the
        strategies that it wraps, but for what its traits name as transient, and for settings:
        what cannot change and is still there.
    run
        Which run it is; None: any.
    """

    def __init__(
        self, folder: Path, strategy: Strategy, run: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = folder / "checkpoints"
        self._run = run
        self._strategy = strategy
        parts = list(chain(strategy))
        self._settings = [
            {k: v for k, v in vars(part).items() if _cannot_change(v) or any(v is p for p in parts)}
            for part in parts
        ]

    def memory(self) -> list[dict[str, Any]]:
        """What the strategy, and each that it wraps, remembers.

        Raises
        ------
        ConfigError
            If one remembers what a checkpoint cannot hold.
        """
        found = []
        for part, settings in zip(chain(self._strategy), self._settings, strict=True):
            transient = traits_of(part).transient
            own: dict[str, Any] = {}
            for name, value in vars(part).items():
                if isinstance(value, _Ledger):
                    own[name] = value.state_dict()
                elif name in transient:
                    continue
                elif _storable(value):
                    own[name] = value
                elif name in settings and settings[name] is value:
                    continue
                else:
                    raise ConfigError(
                        f"checkpoint.every: {type(part).__name__} remembers {name}, a "
                        f"{type(value).__name__}, which a checkpoint cannot hold; it holds "
                        "numbers, strings, arrays, and lists and dicts of them; what is no memory "
                        f"stands in {type(part).__name__}.traits, as Traits(transient=({name!r},))"
                    )
            found.append(own)
        return found

    def restore(self, memory: list[dict[str, Any]]) -> None:
        """Give the strategy back what it remembered."""
        for part, own in zip(chain(self._strategy), memory, strict=True):
            for name, value in own.items():
                if isinstance(there := vars(part).get(name), _Ledger):
                    there.load_state_dict(value)
                else:
                    setattr(part, name, value)

    def write(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint, and remove the oldest.

        Raises
        ------
        ConfigError
            If it cannot be written; the ones before are as they were.
        """
        place = self._folder / f"round-{checkpoint.round:06d}"
        try:
            state_files.write(place, {**vars(checkpoint), "run": dict(self._run or {})})
        except OSError as error:
            raise ConfigError(f"checkpoint.every: cannot write {place}: {error}") from None
        except state_files.Unstorable as error:
            raise ConfigError(
                f"checkpoint.every: a client keeps a {error}, which a checkpoint cannot hold"
            ) from None
        left = self._folder.glob(f"{state_files.PART}*")  # by a process that was killed
        for old in [*left, *sorted(self._folder.glob("round-*"))[:-_KEPT]]:
            shutil.rmtree(old)

    def newest(self) -> Checkpoint:
        """The newest checkpoint that is whole.

        Raises
        ------
        ConfigError
            If there is none, or it is of another configuration.
        """
        folder = self._folder.parent
        places = sorted(self._folder.glob("round-*"), reverse=True)
        for older, place in enumerate(places):
            try:
                found = Checkpoint(**state_files.read(place))
            except (ValueError, TypeError) as error:
                logger.warning("%s is damaged: %s", place, error)
                continue
            if older:
                logger.warning("going on from the one before, after round %d", found.round)
            run = found.run if self._run is None else self._run
            if difference := differences(found.run, run):
                raise ConfigError(
                    f"resume: {place} is of another configuration: {difference}; "
                    f"change {folder / 'config.yaml'} back, or run it again"
                )
            return found
        if places:
            raise ConfigError(f"resume: {folder}: all its checkpoints are damaged; run it again")
        raise ConfigError(
            f"resume: {folder} has no checkpoint: it ended before its first one, or ran without "
            "checkpoint.every=N; run it again"
        )


_SETTINGS = (FunctionType, BuiltinFunctionType, MethodType, type, re.Pattern, frozenset, PurePath)


def _cannot_change(value: object) -> bool:
    """Whether it is, while it stays there, what a run of the same configuration has again."""
    if is_dataclass(value):
        return bool(getattr(value, "__dataclass_params__").frozen)  # noqa: B009, unknown to mypy
    return isinstance(value, _SETTINGS)


def _storable(value: object) -> bool:
    arrays: dict[str, Tensor] = {}
    try:
        state_files.encode(value, arrays)
    except state_files.Unstorable:
        return False
    return True


def add_up(tally: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Two tallies, added key by key."""
    return {key: tally.get(key, 0) + more.get(key, 0) for key in {**tally, **more}}
