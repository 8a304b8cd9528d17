"""A run: set up from its configuration, gone through round by round, its files left in a folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from rich.console import Console

from fedwsa import interruption
from fedwsa.algorithms.attacks.attack import DataAttack, open_attack
from fedwsa.algorithms.sizes.server import sized
from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.config.blame import blaming
from fedwsa.config.component import ConfigError
from fedwsa.config.identity import described
from fedwsa.data.evaluation import Score
from fedwsa.data.federated import FederatedData, open_federated
from fedwsa.data.skew import open_skew
from fedwsa.fleet.devices import resolve_device
from fedwsa.learngene.gene import Learngene
from fedwsa.remembered import enter
from fedwsa.runfolder.files import sync
from fedwsa.schema.config import Config
from fedwsa.schema.sections import Runtime
from server.alignment import check_alignment
from server.budget import Budget
from server.callbacks import Callback
from server.callbacks.choosing import Pruned, Report, build_choosing
from server.callbacks.events import Events
from server.callbacks.progress import ProgressDisplay
from server.callbacks.tables import (
    ClientScoreTable,
    ClientTable,
    History,
    Scopes,
    SizeTable,
    require_history,
)
from server.callbacks.tracker import build_trackers
from server.checkpoint import Checkpoint, Checkpoints, add_up
from server.distillation import EnsembleDistillation
from server.global_model import GlobalModel, initial_arrays
from server.initial import initialise, save_learned
from server.loop import RoundLoop
from server.marks import Marks
from server.nodes import EngineGrid, PartitionGrid
from server.pace import PacedLoop
from server.rates import Rates
from server.record import RoundRecord
from server.result import tally_of, write_result
from server.root import RootTraining
from server.rounds import Conversation, OnEvent
from server.sizes import SizedModels
from server.strategy import build_guard, build_strategy
from server.systems import Systems

logger = logging.getLogger("fedwsa")


class Federation:
    """One run: its data, model and strategy, ready to start on a grid.

    Parameters
    ----------
    config
        The run.
    folder
        Where its files go.
    console
        Where progress is shown.
    resumed
        Whether it goes on from the newest checkpoint in the folder.
    data
        Those of the run; None: opened as the configuration says.
    strategy
        Likewise.
    report
        Of somebody who compares the run with others.

    Raises
    ------
    ConfigError
        If anything in the configuration cannot work; nothing is written then.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        console: Console | None = None,
        resumed: bool = False,
        data: FederatedData | None = None,
        strategy: Strategy | None = None,
        report: Report | None = None,
    ) -> None:
        enter(None)  # files may have changed since this process had a run
        self.config, self.folder = config, folder
        self.console = console or Console()
        self.device = resolve_device(config.device)
        self.data = open_federated(config.data_spec) if data is None else data
        _require_fitting(config, self.data)
        self.sizes = SizedModels.of(config, self.data.whole.shape, self.data.whole.classes)
        public = _from_public(config, self.data, self.sizes, self.device)
        self.strategy = build_strategy(config, self.sizes, public) if strategy is None else strategy
        self.guard = build_guard(config, self.strategy)
        self.model = GlobalModel(config, self.data, self.sizes, self.strategy, self.device, folder)
        self.rates = Rates(config, self.strategy)
        self.checkpoints = _open_checkpoints(config, folder, self.strategy)
        self.begun = _newest(self.checkpoints, folder) if resumed else None
        self.systems = Systems(config, self.data, self.sizes)
        self.trackers = build_trackers(config)
        self.learned = self._initialise()
        if isinstance(self.strategy, FedWSA):
            check_alignment(config, self.strategy, self.sizes, self.model.largest)
        stop, self._best = build_choosing(config, self.model, self._over)
        given_up = None if report is None else Pruned(report)
        self._reason = ""  # why the last round was the last
        self._stops = [judge for judge in (stop, given_up) if judge is not None]
        with blaming(ConfigError, "model: "):
            for model in self.sizes.models.values():
                model.to(self.device)

    def _initialise(self) -> dict[str, Learngene]:
        """Give the models their weights to begin with; what was learned for it here, by size."""
        config, largest, inner = self.config, self.model.largest, sized(self.strategy)
        # Sizes whose initial weights matter: where all is shared, the largest alone.
        wanted = list(self.sizes.models) if inner and inner.has_own else [largest]
        used = initialise(self.sizes, wanted, largest, config, self.data, self.device, self.console)
        if inner and largest in used:
            inner.learn_from(used[largest].tensors)
        return used if config.init.file is None else {}

    @property
    def known_sizes(self) -> dict[str, Any]:
        """Who has which size, and what each is: as in ``sizes.json``."""
        inner = sized(self.strategy)
        return self.sizes.described(self.sizes.shapes if inner is None else inner.shapes)

    def settle(self, runtime: Runtime) -> None:
        """Say what it runs on, once that is known; what is learned does not depend on it."""
        self.config = self.config.model_copy(update={"runtime": runtime})

    @property
    def _over(self) -> int:
        """The rounds that are over when it starts."""
        return 0 if self.begun is None else self.begun.round

    @property
    def _past(self) -> dict[str, float]:
        """Sums over the rounds that were over at the checkpoint."""
        return {} if self.begun is None else self.begun.tally

    def start(self, grid: Grid) -> None:
        """Run all rounds and write the result.

        Raises
        ------
        RunError
            If the run cannot go on; the history so far is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        save_learned(self.folder, self.learned, self.model.largest)
        display = ProgressDisplay(self.config.label, self.config.rounds, self.console)
        events = Events(self.folder, self._over)
        callbacks = [*self._callbacks(display), *self.trackers, events]
        if isinstance(grid, EngineGrid):
            grid.report_progress(display.on_progress)
        try:
            budget = Budget(self.config.privacy, self.strategy, self._past)
            loop = self._loop(grid, budget, events.on_event)
            for tracker in self.trackers:
                tracker.on_start(self.config, self.folder)
            record, tally = self._run(loop, grid, budget, callbacks)
            self.model.save_all(record)
            result = write_result(self.folder, self.config, record, tally, self._best)
            for tracker in self.trackers:
                tracker.on_result(result)
        finally:
            for callback in callbacks:
                callback.on_end()

    def _callbacks(self, display: ProgressDisplay) -> list[Callback]:
        """What writes the tables, shows the progress and keeps the best model."""
        config, folder, over = self.config, self.folder, self._over
        callbacks: list[Callback] = [
            History(
                folder,
                self.model.validates,
                over,
                config.private,
                self.model.is_aimed_at,
                not config.pace.synchronous,
            ),
            ClientScoreTable(folder, over),
            display,
        ]
        if isinstance(self.strategy, FedWSA):
            callbacks.append(Scopes(folder, over))
        if config.clients.table:
            callbacks.append(ClientTable(folder, over))
        if config.clients.sizes is not None:
            callbacks.append(SizeTable(folder, self.sizes.of_client, over))
        if self._best is not None:
            callbacks.append(self._best)
        return callbacks

    def _loop(self, grid: Grid, budget: Budget, on_event: OnEvent) -> RoundLoop:
        """The loop before its first round, or as it was at the checkpoint."""
        fleet = PartitionGrid(grid, self.config.clients.count)
        if inner := sized(self.strategy):
            inner.look_sizes_up(lambda node: self.sizes.of_client[fleet.client(node)])
        arrays = initial_arrays(self.sizes.models, self.strategy)
        if self.begun is not None:
            arrays = self.begun.arrays
            self.checkpoints.restore(self.begun.strategy)
            if self.begun.clients and isinstance(grid, EngineGrid):
                grid.restore(self.begun.clients)
        marks = Marks.of(self.data, self.sizes)
        kind = RoundLoop if self.config.pace.synchronous else PacedLoop
        loop = kind(
            Conversation(self.guard, fleet, self.config, marks, on_event),
            arrays,
            self.config,
            self.model,
            self.rates,
            self.systems if all(traits_of(p).on_devices for p in chain(self.strategy)) else None,
            budget.after,
            self._is_over,
        )
        loop.begin({} if self.begun is None else self.begun.loop)
        return loop

    def _run(
        self, loop: RoundLoop, grid: Grid, budget: Budget, callbacks: Sequence[Callback]
    ) -> tuple[RoundRecord, dict[str, float]]:
        """Go through the rounds that are left; the last one, and the sums over all."""
        config, start, tally = self.config, time.perf_counter(), self._past
        for number in range(self._over + 1, config.rounds + 1):
            interruption.check()
            record = loop.run(number)
            tally = add_up(tally, tally_of(record))
            for callback in callbacks:
                callback.on_round(record)
            if record.last:
                break
            if config.checkpoint.every and number % config.checkpoint.every == 0:
                seconds = {"seconds": time.perf_counter() - start}
                sums = add_up(tally, seconds) | budget.sums()
                self._checkpoint(number, loop, grid, sums)
        tally = add_up(tally, {"seconds": time.perf_counter() - start})
        if number < config.rounds:
            logger.info("round %d: %s, the run ends", number, self._reason)
        if not tally["moved"]:
            logger.warning("no round brought a model: the result is the initial one")
        return record, tally

    def _is_over(self, validation: Score | None) -> bool:
        """Whether a round is the last, and why; to be asked once of each."""
        over = [stop.reason for stop in self._stops if stop.is_over(validation)]
        self._reason = over[0] if over else ""
        return bool(over)

    def _checkpoint(
        self, number: int, loop: RoundLoop, grid: Grid, tally: dict[str, float]
    ) -> None:
        # First what a resume expects to find of the rounds that are over.
        sync(*self.folder.glob("*.csv"), self.folder / "events.jsonl")
        clients = grid.client_states() if isinstance(grid, EngineGrid) else {}
        memory = self.checkpoints.memory()
        kept = Checkpoint(number, loop.arrays, memory, clients, tally, loop.state())
        self.checkpoints.write(kept)


def _require_fitting(config: Config, data: FederatedData) -> None:
    """Refuse an augmentation, a skew or an attack that does not go with the data."""
    data.whole.augmentation(config.dataset.augment)
    open_skew(config.skew, data.whole.train.inputs)
    attack = open_attack(config.attack.rule)
    if isinstance(attack, DataAttack):
        with blaming(ConfigError, "", kinds=False):
            attack.require(data.whole)


def _from_public(
    config: Config, data: FederatedData, sizes: SizedModels, device: str
) -> dict[str, Any]:
    """The facts that a strategy may want of the public examples, if there are any."""
    if not len(data.public):
        return {}
    return {
        "root": RootTraining(config, data, next(iter(sizes.models.values())), device),
        "distilled": EnsembleDistillation(config, data, sizes.models, device),
    }


def _open_checkpoints(config: Config, folder: Path, strategy: Strategy) -> Checkpoints:
    """Those of the run; refused now, if what the strategy remembers cannot be stored."""
    values = config.model_dump(by_alias=True, mode="json")
    checkpoints = Checkpoints(folder, strategy, described(values))
    if config.checkpoint.every is not None:
        checkpoints.memory()
    return checkpoints


def _newest(checkpoints: Checkpoints, folder: Path) -> Checkpoint:
    """Where a run goes on, whose history has all that was before."""
    begun = checkpoints.newest()
    require_history(folder, begun.round)
    return begun
