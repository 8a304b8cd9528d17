"""Trackers: tools that collect what happens in runs, beside the files of the run folder."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fedwsa.config.blame import blaming, told
from fedwsa.config.component import ConfigError, build
from fedwsa.schema.config import Config
from server.callbacks.facts import numbers
from server.record import RoundRecord
from server.rounds import RunError

logger = logging.getLogger("fedwsa")


class Tracker(ABC):
    """A callback that sends a run to a tool.

    The configuration names it, ``tracker.NAME._target_``; the arguments of its constructor are
    its keys. The constructor writes nothing: the run may still be refused.
    """

    @abstractmethod
    def on_start(self, config: Config, folder: Path) -> None:
        """Before the first round; ``folder`` is that of the run."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """The figures of a round, see :func:`server.callbacks.facts.numbers`."""

    @abstractmethod
    def on_result(self, result: Mapping[str, Any]) -> None:
        """What ``result.json`` holds, after the last round."""

    @abstractmethod
    def on_end(self) -> None:
        """At the very end, also of a run that failed."""

    def on_round(self, record: RoundRecord) -> None:
        """After each round."""
        self.log(numbers(record), record.round)


class Guarded:
    """A tracker whose failure does not cost the run: it is said, and the tracker left out.

    What cannot even start ends the run, before its first round.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._works = False

    def on_start(self, config: Config, folder: Path) -> None:
        """Start the tracker.

        Raises
        ------
        RunError
            If it cannot.
        """
        with blaming(RunError, f"tracker.{self._name}: cannot start: "):
            self._tracker.on_start(config, folder)
        self._works = True

    def on_round(self, record: RoundRecord) -> None:
        """After each round."""
        self._try(lambda: self._tracker.on_round(record))

    def on_result(self, result: Mapping[str, Any]) -> None:
        """After the last round."""
        self._try(lambda: self._tracker.on_result(result))

    def on_end(self) -> None:
        """At the very end."""
        self._try(self._tracker.on_end)

    def _try(self, call: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            call()
        except (Exception, SystemExit) as error:  # a tool of others, which may fail in any way
            self._works = False
            name = self._name
            logger.warning("tracker.%s failed and gets no more: %s", name, told(error))


def build_trackers(config: Config) -> list[Guarded]:
    """The trackers that the configuration names.

    Raises
    ------
    ConfigError
        If one is no tracker, cannot be made, or its package is not installed.
    """
    found = []
    for name, component in config.tracker.items():
        tracker = build(component, f"tracker.{name}")
        if not isinstance(tracker, Tracker):
            raise ConfigError(
                f"tracker.{name}._target_: {component.target} is no "
                "server.callbacks.tracker.Tracker"
            )
        found.append(Guarded(name, tracker))
    return found


def require(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Raises
    ------
    ConfigError
        If it is not installed; says how to.
    """
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(
            f"tracker.{extra}: {extra} is not installed; pip install 'fedwsa[{extra}]'"
        ) from None
