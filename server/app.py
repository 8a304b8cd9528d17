"""The ServerApp: a run that is told by its ``overrides``, on the nodes that are there."""

from __future__ import annotations

import gc

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedwsa.config.blame import telling_theirs
from fedwsa.config.component import ConfigError
from fedwsa.remembered import enter
from fedwsa.schema.compose import from_run_config
from server.deployment import folder_of, open_fleet, require_no_memory, told
from server.federation import Federation
from server.folder import describe_run, held
from server.rounds import RunError


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
        # Flower collects garbage at each reply that its QFedAvg or Bulyan reads, which would look
        # through all that was imported every time: of a small model nearly the whole round.
        gc.freeze()
        if federation is not None:
            federation.start(grid)
            return
        enter(context.run_id)
        with told(), telling_theirs(RunError, ConfigError):
            folder, resumed = folder_of(context)
            config = from_run_config(context.run_config)
            data, fleet = open_fleet(config, grid)
            run = Federation(config, folder, resumed=resumed, data=data)
            if config.checkpoint.every is not None:
                require_no_memory(run.strategy)
            if not resumed:
                describe_run(config, data.partition, folder, run.known_sizes)
            with held(folder):
                run.start(fleet)

    return app


app = build()
