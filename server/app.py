"""The ServerApp: sets a run up, goes through its rounds, leaves its files in a run folder."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console
from safetensors.torch import save_file

from fedwsa import messages
from fedwsa.components import ConfigError
from fedwsa.config import Config, from_run_config
from fedwsa.data.federated import FederatedData, open_federated
from fedwsa.devices import resolve_device
from fedwsa.evaluation import Score, evaluate
from fedwsa.models import build_model
from fedwsa.scope import WeightScope, scoped_layers, stability
from fedwsa.strategies.fedwsa import FedWSA
from server.callbacks import Callback
from server.callbacks.progress import ProgressDisplay
from server.callbacks.tables import ClientTable, History, Scopes
from server.nodes import PartitionGrid
from server.rounds import RoundLoop, RoundRecord
from server.strategy import build_strategy

logger = logging.getLogger("fedwsa")


def build(federation: Federation | None = None) -> ServerApp:
    """A ServerApp for a run.

    Parameters
    ----------
    federation
        None: composed from the run's ``overrides``, as on the command line, with its folder at
        ``runs/flower-RUN_ID`` below the working directory.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run = federation
        if run is None:
            config = from_run_config(context.run_config)
            run = Federation(config, Path("runs") / f"flower-{context.run_id}")
        run.start(grid)

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

    Raises
    ------
    ConfigError
        If anything in the configuration cannot work; nothing is written then.
    """

    def __init__(self, config: Config, folder: Path, console: Console | None = None) -> None:
        self.config, self.folder = config, folder
        self.console = console or Console()
        self.device = resolve_device(config.device)
        self.strategy = build_strategy(config)
        self.data: FederatedData = open_federated(*config.data_key)
        images = self.data.images
        self.model = build_model(config.model, images.shape, images.classes, config.seed)
        if isinstance(self.strategy, FedWSA):
            self._check_alignment(self.strategy)
        self.model.to(self.device)

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
        ratios = stability(state, scope, strategy.strength, self.config.wsa.reduction, lr)
        worst = max(ratios, key=lambda name: ratios[name])
        if ratios[worst] > 1:
            logger.warning(
                "wsa.strength=%g is %.1f times what local steps can follow at layer %s "
                "with lr %g: training may diverge; take a smaller strength or lr",
                strategy.strength,
                ratios[worst],
                worst,
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
        display = ProgressDisplay(config.label, config.rounds, self.console)
        callbacks: list[Callback] = [History(self.folder), display]
        if isinstance(self.strategy, FedWSA):
            callbacks.append(Scopes(self.folder))
        if config.clients.table:
            callbacks.append(ClientTable(self.folder))
        if hasattr(grid, "on_progress"):  # our engine tells
            grid.on_progress = display.on_progress
        try:
            fleet = PartitionGrid(grid, config.clients.count)
            # A copy: the model is scored with others' weights later.
            state = {k: t.clone() for k, t in messages.travelling_state(self.model).items()}
            arrays = messages.to_arrays(state)
            loop = RoundLoop(self.strategy, fleet, arrays, config, self._score)
            start = time.perf_counter()
            records = []
            for number in range(1, config.rounds + 1):
                records.append(loop.run(number))
                for callback in callbacks:
                    callback.on_round(records[-1])
            self._finish(loop, records, time.perf_counter() - start)
        finally:
            for callback in callbacks:
                callback.on_end()

    def _score(self, arrays: ArrayRecord) -> Score:
        """The global model on the global test set."""
        messages.load_arrays(self.model, arrays)
        images = self.data.images
        return evaluate(
            self.model,
            images.test.pixels,
            images.test.labels,
            images,
            self.device,
            self.config.evaluation.batch_size,
        )

    def _finish(self, loop: RoundLoop, records: Sequence[RoundRecord], seconds: float) -> None:
        """Write the model and ``result.json``: last round, never the best one."""
        last = records[-1]
        assert last.score is not None  # the last round is always evaluated
        facts = {
            "model": self.config.model.model_dump(by_alias=True),
            "image": self.data.images.shape,
            "classes": self.data.images.classes,
        }
        save_file(
            messages.to_tensors(loop.arrays),
            self.folder / "model.safetensors",
            # One entry: safetensors writes several in an order that differs from run to run.
            {"fedwsa": json.dumps(facts)},
        )
        result = {
            "algorithm": self.config.label,
            "seed": self.config.seed,
            "accuracy": last.score.accuracy,
            "loss": last.score.loss,
            "rounds": len(records),
            "seconds": round(seconds, 3),
            "client_accuracy_mean": last.clients.mean if last.clients else None,
            "client_accuracy_worst10": last.clients.worst10 if last.clients else None,
            "failed": sum(len(r.failed) for r in records),
        }
        text = json.dumps(result, indent=2) + "\n"
        (self.folder / "result.json").write_text(text, encoding="utf-8")


app = build()
