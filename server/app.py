"""The ServerApp: sets a run up, goes through its rounds, leaves its files in a run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from rich.console import Console
from torch import nn

from fedwsa import messages
from fedwsa.components import ConfigError
from fedwsa.config import Config, from_run_config
from fedwsa.data.examples import Examples
from fedwsa.data.federated import FederatedData, open_federated
from fedwsa.data.skew import open_skew
from fedwsa.devices import resolve_device
from fedwsa.evaluation import Score, evaluate
from fedwsa.identity import described
from fedwsa.learngene import wave
from fedwsa.models.files import save_network
from fedwsa.scope import WeightScope, fan_in, scoped_layers, stability
from fedwsa.sizes import WHOLE
from fedwsa.strategies.fedwsa import FedWSA
from fedwsa.strategies.personal import has_global_model
from fedwsa.strategies.privacy import local_spent, spent
from fedwsa.strategies.sizes import sized
from fedwsa.strategies.wave import FedWave
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
from server.deployment import folder_of, open_fleet, require_no_memory, told
from server.folder import describe_run, held
from server.initial import initialise
from server.nodes import PartitionGrid
from server.result import tally_of, write_result
from server.rounds import RoundLoop, RoundRecord
from server.sizes import SizedModels
from server.strategy import build_guard, build_strategy
from server.systems import Systems

logger = logging.getLogger("fedwsa")


def build(federation: Federation | None = None) -> ServerApp:
    """A ServerApp for a run.

    Parameters
    ----------
    federation
        None: composed from the run's ``overrides``, as on the command line, with its folder at
        ``runs/flower-RUN_ID`` below the working directory, or, if the run's ``resume`` names one,
        there.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        if federation is not None:
            federation.start(grid)
            return
        with told():
            folder, resumed = folder_of(context)
            config = from_run_config(context.run_config)
            data, fleet = open_fleet(config, grid)
            run = Federation(config, folder, resumed=resumed, data=data)
            if config.checkpoint.every is not None:
                require_no_memory(run.strategy)
            if not resumed:
                describe_run(config, data.partition, folder, run.sizes.of_client)
            with held(folder):
                run.start(fleet)

    return app


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
        self.config, self.folder = config, folder
        self.console = console or Console()
        self.device = resolve_device(config.device)
        self.data = open_federated(config.data_spec) if data is None else data
        self.data.whole.augmentation(config.dataset.augment)  # refused, if it does not fit
        open_skew(config.skew, self.data.whole.train.inputs)
        self.sizes = SizedModels.of(config, self.data.whole.shape, self.data.whole.classes)
        self.strategy = build_strategy(config, self.sizes)
        self.guard = build_guard(config, self.strategy)
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
            self.largest,
            config,
            self.data,
            self.device,
            self.console,
        )
        self.learned = used if config.init.file is None else {}
        if isinstance(inner := sized(self.strategy), FedWave) and self.largest in used:
            templates = wave.templates_in(used[self.largest].tensors)
            if templates:
                inner.begin_with(templates)
        if isinstance(self.strategy, FedWSA):
            self._check_alignment(self.strategy)
        self._early_stop, self._best = self._choosing()
        for model in self.sizes.models.values():
            model.to(self.device)

    @property
    def largest(self) -> str:
        """The size whose model is the global one."""
        inner = sized(self.strategy)
        return WHOLE if inner is None else inner.largest

    @property
    def model(self) -> nn.Module:
        """The network of the largest size."""
        return self.sizes.models[self.largest]

    @property
    def validates(self) -> bool:
        """Whether there is a global model and a split to validate it on."""
        return len(self.data.validation) > 0 and has_global_model(self.strategy)

    def _choosing(self) -> tuple[EarlyStop | None, BestModel | None]:
        """What goes by the validation accuracy, as it was at the checkpoint."""
        wanted = self.config.evaluation
        if (wanted.patience or wanted.keep_best) and not self.validates:
            name = self.config.label
            raise ConfigError(f"evaluation: under {name} there is no global model to validate")
        past = validation_accuracies(self.folder, self._over)
        stop = best = None
        if wanted.patience is not None:
            stop = EarlyStop(wanted.patience, [accuracy for _, accuracy in past])
        if wanted.keep_best:
            save = partial(self._save, "best.safetensors", self.largest)
            best = BestModel(save, past)
        return stop, best

    def _begin_with(self) -> list[str]:
        """Sizes whose initial weights matter: where all is shared, the largest alone."""
        inner = sized(self.strategy)
        return list(self.sizes.models) if inner and inner.has_own else [self.largest]

    def _check_alignment(self, strategy: FedWSA) -> None:
        """Refuse layers that do not exist; warn of a strength that local steps cannot follow."""
        state = self.model.state_dict()
        try:
            names = scoped_layers(state, self.config.wsa.layers)
            scope = strategy.target or WeightScope.measure(state, self.config.wsa.layers)
        except ValueError as error:
            raise ConfigError(f"wsa.layers: {error}") from None
        if unknown := sorted(set(scope.names) - set(names)):
            raise ConfigError(f"wsa.scope: the file has layers that the model lacks: {unknown}")
        local = self.config.local
        lr = local.lr * max(local.lr_factors)
        ratios: dict[tuple[str, str], float] = {}
        for size, model in self.sizes.models.items():
            own = model.state_dict()
            target = scope.only([name for name in scope.names if name in own])
            if strategy.normalise:
                widths = [fan_in([of[n] for n in target.names]) for of in (state, own)]
                target = target.times((widths[0] / widths[1]).sqrt())
            found = stability(own, target, strategy.strength, self.config.wsa.reduction, lr)
            ratios |= {(size, name): ratio for name, ratio in found.items()}
        size, name = worst = max(ratios, key=lambda key: ratios[key])
        if ratios[worst] > 1:
            logger.warning(
                "wsa.strength=%g is %.1f times what local steps can follow at layer %s%s "
                "with lr %g: training may diverge; take a smaller strength or lr",
                strategy.strength,
                ratios[worst],
                name,
                "" if size == WHOLE else f" of size {size}",
                lr,
            )

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
            single = size == self.largest
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
                logger.warning("no round brought a model: the result is that of the first one")
            self._save_models(record)
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
            History(folder, self.validates, over, config.private),
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
        systems = self.systems if getattr(self.strategy, "on_devices", True) else None
        validate = self._validate if self.validates else None
        is_over = self._early_stop.is_over if self._early_stop else None
        return RoundLoop(self.guard, fleet, arrays, config, self._score, systems, validate, is_over)

    def _checkpoint(
        self, number: int, loop: RoundLoop, grid: Grid, tally: dict[str, float], seconds: float
    ) -> None:
        self.checkpoints.write(
            Checkpoint(
                number,
                loop.arrays,
                self.checkpoints.memory(),
                getattr(grid, "client_states", {}),  # our engine's
                add_up(tally, {"seconds": seconds}),
            )
        )

    def _score(self, arrays: ArrayRecord, number: int) -> dict[str, Score]:
        """The model of each size on the global test set, after a round, the largest first.

        None of a strategy that leaves each client a model of its own.
        """
        if not has_global_model(self.strategy):
            return {}
        sizes = sorted(self.sizes.models, key=lambda size: size != self.largest)
        test = self.data.whole.test
        return {size: self._score_on(test, arrays, size, number) for size in sizes}

    def _validate(self, arrays: ArrayRecord, number: int) -> Score:
        """The global model on the examples that were kept for choosing."""
        chosen = self.data.whole.train[self.data.validation]
        return self._score_on(chosen, arrays, self.largest, number)

    def _score_on(self, examples: Examples, arrays: ArrayRecord, size: str, number: int) -> Score:
        model = self.sizes.models[size]
        messages.load_arrays(model, self._state(arrays, size, number))
        return evaluate(
            model,
            examples,
            self.data.whole,
            self.device,
            self.config.evaluation.batch_size,
        )

    def _state(self, arrays: ArrayRecord, size: str, number: int) -> ArrayRecord:
        """The state of a size's model in the arrays after a round."""
        inner = sized(self.strategy)
        return arrays if inner is None else inner.plain(arrays, size, number)

    def _save_models(self, last: RoundRecord) -> None:
        """``model.safetensors``, of the largest size; one of each if they share not all."""
        if last.score is None or last.arrays is None:  # each client has a model of its own
            return
        inner = sized(self.strategy)
        wanted = {"model.safetensors": self.largest}
        if inner is not None and inner.has_own:
            wanted |= {f"model-{size}.safetensors": size for size in self.sizes.models}
        for file, size in wanted.items():
            self._save(file, size, last.arrays, last.round)

    def _save(self, file: str, size: str, arrays: ArrayRecord, number: int) -> None:
        save_network(
            self.folder / file,
            messages.to_tensors(self._state(arrays, size, number)),
            self.config.model_of(size),
            self.data.whole,
        )


def initial_arrays(models: Mapping[str, nn.Module], strategy: Strategy) -> ArrayRecord:
    """The arrays that a run begins with: the state of each size's model, put together."""
    # Copies: the models are scored with others' weights later.
    states = {
        size: {k: t.clone() for k, t in messages.travelling_state(model).items()}
        for size, model in models.items()
    }
    inner = sized(strategy)
    return messages.to_arrays(states[WHOLE]) if inner is None else inner.join(states)


app = build()
