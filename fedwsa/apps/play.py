"""A Flower App played on our engine, or on Flower's own simulation to compare."""

from __future__ import annotations

import logging
import secrets
import sys
from typing import Any, Literal

from flwr.app import Context, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run

from fedwsa.apps.folder import AppFolder, Federation
from fedwsa.config.blame import blaming
from fedwsa.config.component import ConfigError
from fedwsa.simulation.run import run_simulation

Engine = Literal["fedwsa", "flower"]

logger = logging.getLogger("fedwsa")

_NAMES: dict[Engine, str] = {"fedwsa": "fedwsa's engine", "flower": "Flower's simulation"}

SUPERNODES = 2
"""As many as ``flwr run`` has where nobody says it."""


def play(
    app: AppFolder,
    config: UserConfig,
    federation: Federation,
    engine: Engine = "fedwsa",
    workers: int | None = None,
    cohort: int = 1,
) -> None:
    """Run an app in its federation; what its ServerApp raises is the caller's.

    Parameters
    ----------
    config
        What a command line changes of the app's.
    engine
        ``flower``: Flower's own simulation.
    workers, cohort
        See :func:`fedwsa.simulation.run_simulation`.

    Raises
    ------
    ConfigError
        If the app cannot be imported, or its components are no apps.
    """
    run = Run.create_empty(secrets.randbits(63))
    run.fab_id, run.fab_version, run.override_config = app.identity, app.version, dict(config)
    whole = {**app.config, **config}
    supernodes = SUPERNODES if federation.supernodes is None else federation.supernodes
    resources = {"num_cpus": federation.cpus, "num_gpus": federation.gpus}
    backend: dict[str, Any] = {
        "client_resources": {k: v for k, v in resources.items() if v is not None},
        "init_args": dict(federation.init),
    }
    logger.info(
        "%s %s: %d supernodes, played by %s", app.identity, app.version, supernodes, _NAMES[engine]
    )
    # As Flower does: whatever else lies on the path, the app's own folder comes first.
    sys.path[:] = [str(app.path), *(place for place in sys.path if place != str(app.path))]
    if engine == "flower":
        _play_there(app, run, whole, supernodes, backend, federation.verbose)
        return
    client, server = _component(app.client, ClientApp), _component(app.server, ServerApp)
    run_simulation(
        server,
        client,
        supernodes,
        backend_config=backend,
        verbose_logging=federation.verbose,
        workers=workers,
        cohort=cohort,
        run_config=whole,
        run=run,
    )


def _component(place: str, kind: type[Any]) -> Any:
    """One of the two apps."""
    try:
        with blaming(ConfigError, f"{place}: "):
            found = load_app(place, AttributeError)
    except ConfigError as error:  # Flower's explains references on further lines
        raise ConfigError(str(error).partition(" The object reference")[0]) from error.__cause__
    if not isinstance(found, kind):
        raise ConfigError(f"{place} is a {type(found).__name__}, no {kind.__name__}")
    return found


def _play_there(
    app: AppFolder,
    run: Run,
    config: UserConfig,
    supernodes: int,
    backend: dict[str, Any],
    verbose: bool,
) -> None:
    """The same on Flower's simulation, as ``flwr run`` starts it.

    Its public function leaves ``run_config`` empty and loads no folder, so this is the function
    behind it, which has no public name.
    """
    # Only now: the other engine does without Flower's.
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supercore.telemetry import EventType

    run.primary_task_id, run.federation_id = secrets.randbits(63), NOOP_FEDERATION_ID
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run.run_id, 1, 1
    if not verbose:
        logging.getLogger("flwr").setLevel(logging.INFO)
    _run_simulation(
        num_supernodes=supernodes,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app_attr=app.client,
        server_app_attr=app.server,
        backend_config={k: v for k, v in backend.items() if v},
        server_app_context=Context(run.run_id, 1, {}, RecordDict(), config),
        app_dir=str(app.path),
        run=run,
        verbose_logging=verbose,
        is_app=True,
    )
