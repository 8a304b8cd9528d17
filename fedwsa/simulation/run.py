"""``run_simulation``: Flower's function, on our engine."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import Context, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedwsa.simulation.cluster import SimulationError, connect, count_workers

logger = logging.getLogger("fedwsa")

__all__ = ["SimulationError", "run_simulation"]


def run_simulation(
    server_app: ServerApp,
    client_app: ClientApp,
    num_supernodes: int,
    backend_name: str = "ray",
    backend_config: dict[str, Any] | None = None,
    enable_tf_gpu_growth: bool = False,
    verbose_logging: bool = False,
    *,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    address: str | None = None,
    work: Sequence[float] | Callable[[int], float] | None = None,
    cohort: int = 1,
    keep_workers: bool = False,
    run_config: UserConfig | None = None,
    run: Run | None = None,
) -> None:
    """Run a Flower app on this machine or on a Ray cluster; a drop-in for Flower's function.

    The ServerApp runs in the calling thread, so that its errors and Ctrl-C reach the caller; in one
    of its own where an event loop runs, as in Jupyter, so that it may run another.
    Clients are played by persistent Ray actors; what many messages share lies once in Ray's
    object store. Replies to messages that a strategy marks as
    :class:`~fedwsa.simulation.reduce.Averaged` are averaged where the clients are.

    Parameters
    ----------
    server_app, client_app
        Any apps of Flower's Message API.
    num_supernodes
        How many clients there are; client i has ``partition-id`` i in its ``node_config``.
    backend_name
        Only "ray".
    backend_config
        As Flower's: ``client_resources`` (``num_cpus``, ``num_gpus``) and ``init_args`` (for
        ``ray.init``).
        A worker has one CPU, or ``num_cpus`` of ``client_resources``, and as many threads; as many
        workers are started as fit. Keys may have dashes; ``address`` of ``init_args`` is ours; of
        other keys a warning says that they are ignored.
    enable_tf_gpu_growth
        Not supported: set ``TF_FORCE_GPU_ALLOW_GROWTH=true``.
    verbose_logging
        Show Flower's debug messages.
    workers
        Ray actors. None: as many as fit.
    gpus_per_worker
        Share of a GPU for each worker.
    address
        ``auto`` or ``HOST:PORT`` of a Ray cluster to join. None: start Ray here, on 127.0.0.1,
        and shut it down at the end; a Ray that this process runs already is used, and stays.
    work
        What each client has to do in a training, in any unit, so that the longest start first;
        or a function that says it of a client, which is asked of those that train.
    cohort
        How many clients a worker may train at once, if ``client_app`` is a
        :class:`~fedwsa.simulation.cohort.CohortApp`.
    keep_workers
        Leave the workers to the next call of this process that keeps them, and take those of the
        last one, while Ray stays up between them. Their processes remember what the apps before
        left in globals.
    run_config
        What the contexts of the ServerApp and of all clients have as ``run_config``: names with
        values that are strings, numbers, true or false. Flower's function has no such argument.
    run
        What ``grid.run`` says of the app; None: its number alone.

    Raises
    ------
    SimulationError
        If an argument is wrong, nobody answers at ``address``, or no worker fits.
    """
    if backend_name != "ray":
        raise SimulationError(f"backend_name={backend_name!r}: only ray is supported")
    if enable_tf_gpu_growth:
        raise SimulationError("enable_tf_gpu_growth: set TF_FORCE_GPU_ALLOW_GROWTH=true instead")
    if not isinstance(server_app, ServerApp) or not isinstance(client_app, ClientApp):
        raise SimulationError("server_app must be a ServerApp and client_app a ClientApp")
    _check_numbers(num_supernodes, workers, cohort, work)
    settings = _checked(run_config or {})
    if verbose_logging:
        logging.getLogger("flwr").setLevel(logging.DEBUG)
    init, cpus, gpus = _from_backend(backend_config or {}, gpus_per_worker)

    named = init.pop("address", None)
    if address is None and named != "local":
        address = named
    ours = connect(address, **init)
    # Only now: importing Ray reads what connect() has set.
    import ray

    from fedwsa.simulation.grid import RayGrid
    from fedwsa.simulation.pool import Pool

    pool = None
    try:
        of_server = 0 if run is None else 1  # as in Flower's function, and with `flwr run`
        run = run or Run.create_empty(secrets.randbits(63))
        # Flower asks who is speaking when a Message is made, and has no public way to say it.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run.run_id, 1, 1
        count = count_workers(workers, gpus, cpus)
        pool = Pool(
            client_app, run.run_id, num_supernodes, count, gpus, keep_workers, cpus, settings
        )
        grid = RayGrid(pool, run, num_supernodes, work, cohort)
        context = Context(run.run_id, of_server, {}, RecordDict(), dict(settings))
        _outside_of_event_loops(lambda: server_app(grid, context))
    finally:
        if pool is not None:
            pool.close()
        if ours:
            ray.shutdown()


def _outside_of_event_loops(call: Callable[[], object]) -> None:
    """Call in this thread, or in another if an event loop runs in it; errors are the caller's."""
    if not _in_event_loop():
        call()
        return
    errors: list[BaseException] = []

    def caught() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=caught, daemon=True)  # Ctrl-C leaves it behind
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _checked(run_config: UserConfig) -> UserConfig:
    """Refuse what a Flower app's configuration cannot hold."""
    for key, value in run_config.items():
        if not isinstance(key, str) or not isinstance(value, bool | int | float | str):
            raise SimulationError(
                f"run_config: {key!r} must be a string, and its value a string, a number, true or "
                f"false, not {type(value).__name__}; nested names are written with dots"
            )
    return run_config


def _check_numbers(
    num_supernodes: int,
    workers: int | None,
    cohort: int,
    work: Sequence[float] | Callable[[int], float] | None,
) -> None:
    """Refuse numbers with which nothing could run."""
    counts = {"num_supernodes": num_supernodes, "workers": workers, "cohort": cohort}
    for name, value in counts.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and value >= 1):
            raise SimulationError(f"{name}={value!r}: must be a whole number, at least 1")
    if work is None or callable(work):
        return
    if len(work) != num_supernodes:
        raise SimulationError(f"work has {len(work)} entries for {num_supernodes} clients")
    if not all(0 <= amount < math.inf for amount in work):
        raise SimulationError("work: must be numbers that are not negative")


def _from_backend(config: dict[str, Any], gpus: float) -> tuple[dict[str, Any], float, float]:
    """Arguments of ``ray.init``, CPUs and GPUs of a worker, from Flower's ``backend_config``."""
    config = _underscored(config)
    resources = config.get("client_resources", {})
    unknown = [key for key in config if key not in ("client_resources", "init_args")]
    unknown += [f"client_resources.{k}" for k in resources if k not in ("num_cpus", "num_gpus")]
    if unknown:
        logger.warning("backend_config: %s: unknown here, and ignored", ", ".join(unknown))
    # What clients print is shown, as in Flower's simulation.
    init: dict[str, Any] = {"log_to_driver": True}
    init |= config.get("init_args", {})
    cpus = float(resources.get("num_cpus", 1))
    gpus = float(gpus or resources.get("num_gpus", 0))
    if not (cpus > 0 and gpus >= 0):
        raise SimulationError(f"a worker cannot have {cpus:g} CPUs and {gpus:g} GPUs")
    return init, cpus, gpus


def _underscored(config: dict[str, Any]) -> dict[str, Any]:
    """The same with underscores for the dashes in its keys, as Flower reads it."""
    return {
        key.replace("-", "_"): _underscored(value) if isinstance(value, dict) else value
        for key, value in config.items()
    }
