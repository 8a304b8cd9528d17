"""A run: set up from its configuration, gone through round by round, its files left in a folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid
from rich.console import Console

from fedwsa import interruption
from fedwsa.algorithms.privacy import local_spent, spent
from fedwsa.algorithms.sizes.server import sized
from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.config.blame import blaming
from fedwsa.config.component import ConfigError
from fedwsa.config.identity import described
from fedwsa.data.federated import FederatedData, open_federated
from fedwsa.data.skew import open_skew
from fedwsa.fleet.devices import resolve_device
from fedwsa.remembered import enter
from fedwsa.runfolder.files import sync
from fedwsa.schema.config import Config
from fedwsa.wire import messages
from server.alignment import check_alignment
from server.callbacks import Callback
from server.callbacks.choosing import BestModel, EarlyStop
from server.callbacks.events import Events
from server.callbacks.progress import ProgressDisplay
from server.callbacks.tables import (
    ClientScoreTable,
    ClientTable,
    History,
    Scopes,
    SizeTable,
    require_history,
    validation_accuracies,
)
from server.callbacks.tracker import build_trackers
from server.checkpoint import Checkpoint, Checkpoints, add_up
from server.global_model import GlobalModel, initial_arrays
from server.initial import initialise
from server.nodes import PartitionGrid
from server.result import tally_of, write_result
from server.rounds import RoundLoop, RoundRecord
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
    ) -> None:
        enter(None)  # files may have changed since this process had a run
        self.config, self.folder = config, folder
        self.console = console or Console()
        self.device = resolve_device(config.device)
        self.data = open_federated(config.data_spec) if data is None else data
        self.data.whole.augmentation(config.dataset.augment)  # refused, if it does not fit
        open_skew(config.skew, self.data.whole.train.inputs)
        self.sizes = SizedModels.of(config, self.data.whole.shape, self.data.whole.classes)
        self.strategy = build_strategy(config, self.sizes)
        self.guard = build_guard(config, self.strategy)
        self.model = GlobalModel(config, self.data, self.sizes, self.strategy, self.device, folder)
        values = config.model_dump(by_alias=True, mode="json")
        self.checkpoints = Checkpoints(folder, self.strategy, described(values))
        if config.checkpoint.every is not None:
            self.checkpoints.memory()  # refused now, if it cannot be stored
        self.begun = self.checkpoints.newest() if resumed else None
        if self.begun is not None:
            require_history(folder, self.begun.round)
        self.systems = Systems(config, self.data, self.sizes)
        self.trackers = build_trackers(config)
        used = initialise(
            self.sizes,
            self._begin_with(),
            self.model.largest,
            config,
            self.data,
            self.device,
            self.console,
        )
        self.learned = used if config.init.file is None else {}
        if (inner := sized(self.strategy)) and self.model.largest in used:
            inner.learn_from(used[self.model.largest].tensors)
        if isinstance(self.strategy, FedWSA):
            check_alignment(config, self.strategy, self.sizes, self.model.largest)
        self._early_stop, self._best = self._choosing()
        with blaming(ConfigError, "model: "):
            for model in self.sizes.models.values():
                model.to(self.device)

    def _choosing(self) -> tuple[EarlyStop | None, BestModel | None]:
        """What goes by the validation accuracy, as it was at the checkpoint."""
        wanted = self.config.evaluation
        if (wanted.patience or wanted.keep_best) and not self.model.validates:
            if not len(self.data.validation):
                raise ConfigError(
                    f"evaluation.validation={wanted.validation:g} leaves no sample to choose by"
                )
            name = self.config.label
            raise ConfigError(f"evaluation: under {name} there is no global model to validate")
        past = validation_accuracies(self.folder, self._over)
        stop = best = None
        if wanted.patience is not None:
            stop = EarlyStop(wanted.patience, [accuracy for _, accuracy in past])
        if wanted.keep_best:
            save = partial(self.model.save, "best.safetensors", self.model.largest)
            best = BestModel(save, past)
        return stop, best

    def _begin_with(self) -> list[str]:
        """Sizes whose initial weights matter: where all is shared, the largest alone."""
        inner = sized(self.strategy)
        return list(self.sizes.models) if inner and inner.has_own else [self.model.largest]

    def start(self, grid: Grid) -> None:
        """Run all rounds and write the result.

        Raises
        ------
        RunError
            If the run cannot go on; the history so far is kept.
        """
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        for size, gene in self.learned.items():
            single = size == self.model.largest
            gene.save(
                self.folder
                / ("learngene.safetensors" if single else f"learngene-{size}.safetensors")
            )
        callbacks, display = self._callbacks()
        callbacks.append(events := Events(self.folder, self._over))
        if hasattr(grid, "on_progress"):  # our engine tells
            grid.on_progress = display.on_progress
        try:
            loop = self._loop(grid)
            loop.on_event = events.on_event
            for tracker in self.trackers:
                tracker.on_start(config, self.folder)
            start = time.perf_counter()
            tally = {} if self.begun is None else self.begun.tally
            for number in range(self._over + 1, config.rounds + 1):
                interruption.check()
                record = loop.run(number)
                tally = add_up(tally, tally_of(record) | self._asked(record))
                record.epsilon = self._epsilon(tally)
                for callback in callbacks:
                    callback.on_round(record)
                if record.last:
                    break
                if config.checkpoint.every and number % config.checkpoint.every == 0:
                    self._checkpoint(number, loop, grid, tally, time.perf_counter() - start)
            tally = add_up(tally, {"seconds": time.perf_counter() - start})
            if number < config.rounds:
                logger.info(
                    "round %d: no better validation accuracy for %d evaluations, the run ends",
                    number,
                    config.evaluation.patience,
                )
            if not tally["moved"]:
                logger.warning("no round brought a model: the result is the initial one")
            self.model.save_all(record)
            result = write_result(self.folder, config, record, tally, self._best)
            for tracker in self.trackers:
                tracker.on_result(result)
        finally:
            for callback in callbacks:
                callback.on_end()

    def _asked(self, record: RoundRecord) -> dict[str, float]:
        """Who is to answer once more, under local privacy: each answer has its price."""
        if self.config.privacy.local is None:
            return {}
        away = {*record.dropped}
        return {f"asked/{client}": 1 for client in record.cohort if client not in away}

    def _epsilon(self, tally: Mapping[str, float]) -> float | None:
        """What privacy has cost; under local privacy the client that was asked most often."""
        if (local := self.config.privacy.local) is None:
            return spent(self.strategy)
        most = max((n for key, n in tally.items() if key.startswith("asked/")), default=0)
        return local_spent(local.epsilon, self.config.privacy.delta, int(most))

    @property
    def _over(self) -> int:
        """The rounds that are over when it starts."""
        return 0 if self.begun is None else self.begun.round

    def _callbacks(self) -> tuple[list[Callback], ProgressDisplay]:
        config, folder, over = self.config, self.folder, self._over
        display = ProgressDisplay(config.label, config.rounds, self.console)
        callbacks: list[Callback] = [
            History(folder, self.model.validates, over, config.private),
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
        return [*callbacks, *self.trackers], display

    def _loop(self, grid: Grid) -> RoundLoop:
        """The loop before its first round, or as it was at the checkpoint."""
        config = self.config
        fleet = PartitionGrid(grid, config.clients.count)
        if inner := sized(self.strategy):
            inner.size_of = lambda node: self.sizes.of_client[fleet.client(node)]
        arrays = initial_arrays(self.sizes.models, self.strategy)
        if self.begun is not None:
            arrays = self.begun.arrays
            self.checkpoints.restore(self.begun.strategy)
            if self.begun.clients:
                grid.client_states = self.begun.clients  # type: ignore[attr-defined]  # our engine's
        there = all(traits_of(part).on_devices for part in chain(self.strategy))
        systems = self.systems if there else None
        validate = self.model.validate if self.model.validates else None
        is_over = self._early_stop.is_over if self._early_stop else None
        loop = RoundLoop(
            self.guard, fleet, arrays, config, self.model.score, systems, validate, is_over
        )
        loop.staying = self.sizes.marks
        reference = self.data.reference
        loop.data_told = (
            {messages.DATA_REFERENCE: reference}
            if reference
            else {messages.DATA_MARK: self.data.mark}
        )
        return loop

    def _checkpoint(
        self, number: int, loop: RoundLoop, grid: Grid, tally: dict[str, float], seconds: float
    ) -> None:
        # First what a resume expects to find of the rounds that are over.
        sync(*self.folder.glob("*.csv"), self.folder / "events.jsonl")
        self.checkpoints.write(
            Checkpoint(
                number,
                loop.arrays,
                self.checkpoints.memory(),
                getattr(grid, "client_states", {}),  # our engine's
                add_up(tally, {"seconds": seconds}),
            )
        )
