"""What runs the apps: our engine, or Flower's own simulation."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.clientapp import ClientApp

from clients import app as clients
from clients.cohort import why_not
from clients.footprint import room_for, sharing
from clients.measure import choose_cohort
from clients.received import named_objectives
from clients.stacking import stacking
from experiments.commands.ray_start import RayStart
from fedwsa import interruption
from fedwsa.config.component import ConfigError
from fedwsa.fleet.devices import Device, resolve_device
from fedwsa.fleet.size_rules import WHOLE
from fedwsa.launcher import find_apps
from fedwsa.schema.config import Config
from fedwsa.schema.fleet import Fleet
from fedwsa.schema.sections import Cohort, Runtime
from fedwsa.simulation import SimulationError, run_simulation
from fedwsa.simulation.cluster import connect, cores, count_workers
from server import app as server
from server.federation import Federation

# Ray is imported where it runs: importing it reads what connect() has set.

logger = logging.getLogger("fedwsa")


def start_ray(config: Config) -> RayStart | None:
    """Start Ray, or join the cluster, in the background, if the run is to use it."""
    if config.runtime.name != "ray":
        return None
    if config.runtime.address is None:
        return RayStart.at(None)
    # Each machine of a cluster has the apps at a place of its own.
    return RayStart.at(config.runtime.address, runtime_env={"worker_process_setup_hook": find_apps})


def await_ray(start: RayStart | None) -> None:
    """Return once Ray runs.

    Raises
    ------
    ConfigError
        If nobody answers at ``runtime.address``.
    """
    error = start.wait() if start is not None else None
    if isinstance(error, SimulationError):
        where = "" if start is None or start.address is None else "runtime."
        raise ConfigError(f"{where}{error}")
    if error is not None:
        raise error


def located(config: Config) -> Config:
    """The run with its device and cache folder as they are on this machine.

    A folder that begins with ``~`` or a variable is left to each machine of a cluster.
    """
    cache_dir = config.cache_dir
    if config.runtime.address is None:
        cache_dir = str(Path(os.path.expandvars(cache_dir)).expanduser().resolve())
    device: Device = config.device
    if config.runtime.address is None or device != "auto":
        device = resolve_device(device)
    return config.model_copy(update={"device": device, "cache_dir": cache_dir})


def settled(federation: Federation) -> Runtime:
    """What runs a federation, with what ``auto`` and null stand for, so that its folder repeats it.

    Raises
    ------
    ConfigError
        If a worker cannot have what it is to have.
    """
    config, runtime = federation.config, federation.config.runtime
    if runtime.name == "flower":
        return runtime.model_copy(update={"workers": _workers(runtime.workers), "cohort": "off"})
    if runtime.address is not None:
        gpus = runtime.gpus_per_worker or 0.0
        try:
            workers = count_workers(runtime.workers, gpus)
        except SimulationError as error:
            raise ConfigError(f"runtime.gpus_per_worker={gpus:g}: {error}") from None
        cohort = _cohort(federation, workers)
    else:
        if runtime.gpus_per_worker:
            resolve_device("cuda", "runtime.gpus_per_worker")
        workers, cohort = _here(federation)
        share = runtime.gpus_per_worker
        gpus = _gpu_share(config, workers) if share is None else share
    return runtime.model_copy(
        update={"workers": workers, "gpus_per_worker": gpus, "cohort": cohort}
    )


def _here(federation: Federation) -> tuple[int, Cohort]:
    """Workers on this machine, and how many clients each trains at once."""
    config, runtime = federation.config, federation.config.runtime
    if config.device != "cpu" and runtime.workers is None and runtime.gpus_per_worker is None:
        # A stack fills a GPU: a second worker would wait for it. Single clients do not.
        one_each = torch.cuda.device_count() if config.device == "cuda" else 1
        cohort = _cohort(federation, one_each)
        return (one_each if cohort not in ("off", 1) else _workers(None)), cohort
    workers = _workers(runtime.workers)
    return workers, _cohort(federation, workers)


def _cohort(federation: Federation, workers: int) -> Cohort:
    """How many clients a worker trains at once: as asked for, or measured, which is said."""
    config, cohort = federation.config, federation.config.runtime.cohort
    if cohort == "auto":
        size, reason = choose_cohort(config, federation.data, workers, federation.sizes.of_client)
        logger.info("cohort: clients are trained %s", reason)
        return "off" if size == 1 else size
    if cohort not in ("off", 1):
        if problem := _unstackable(federation):
            begin = f"runtime.cohort={cohort}: clients cannot be trained at once"
            raise ConfigError(f"{begin}: {problem}")
        _require_room(federation, int(cohort), workers)
    return cohort


def _unstackable(federation: Federation) -> str | None:
    """Why the clients of a size cannot be trained at once; None if all can."""
    config, whole = federation.config, federation.data.whole
    if problem := why_not(config.local, named_objectives(config)):
        return problem
    for size, model in federation.sizes.models.items():
        found = stacking(model, whole.shape, whole.classes, config.local.largest_batch)
        if problem := found.reason:
            return problem if size == WHOLE else f"of size {size}, {problem}"
    return None


def _require_room(federation: Federation, cohort: int, workers: int) -> None:
    """Refuse more clients at once than there is memory for."""
    config, shape = federation.config, federation.data.whole.shape
    counts = Counter(federation.sizes.of_client)
    device = resolve_device(config.device)
    for size, model in federation.sizes.models.items():
        share = math.ceil(counts[size] * config.clients.fraction / workers)
        count = min(cohort, share)
        room = room_for(model, shape, config.local, device, workers)
        if count > room.most:
            raise ConfigError(
                f"runtime.cohort={cohort}: in each of {workers} workers {count} clients would take "
                f"{count * room.each / 1e9:.3g} GB, of {room.free / 1e9:.3g} GB that are free for "
                f"all, and four fifths may be used: at most {room.most} fit"
            )


def _workers(wanted: int | None) -> int:
    if wanted is not None and wanted > cores():
        logger.warning(
            "runtime.workers=%d, but there are %d cores: using %d", wanted, cores(), cores()
        )
    return min(wanted or cores(), cores())


def _gpu_share(config: Config, workers: int) -> float:
    """Share of a GPU for each worker, so that all find a place and no GPU is left idle."""
    if config.device != "cuda":
        return 0.0
    return 1.0 / sharing("cuda", workers)


def run(federation: Federation, client_app: ClientApp | None) -> None:
    """Run the apps of a federation where its configuration says."""
    if federation.config.runtime.name == "flower":
        _run_on_flower(federation, client_app)
    else:
        _run_on_ray(federation, client_app)
    interruption.check()  # Flower's simulation ends its thread, and says nothing


def _run_on_ray(federation: Federation, client_app: ClientApp | None) -> None:
    config, runtime = federation.config, federation.config.runtime
    run_simulation(
        server.build(federation),
        client_app or clients.build(config),
        config.clients.count,
        workers=runtime.workers,
        gpus_per_worker=runtime.gpus_per_worker or 0.0,
        address=runtime.address,
        work=_work(federation),
        cohort=runtime.cohort if isinstance(runtime.cohort, int) else 1,
        keep_workers=True,  # for the next run of a sweep or a study
    )


def _work(federation: Federation) -> Callable[[int], float]:
    """What a training costs a client: samples, passes over them, size of the model."""
    fleet, sizes = Fleet(federation.config), federation.sizes
    samples = federation.data.partition.shares.sizes

    def work(client: int) -> float:
        cost = sizes.costs[sizes.of_client[client]]
        return float(samples[client]) * fleet.conditions(client).epochs * cost

    return work


def _run_on_flower(federation: Federation, client_app: ClientApp | None) -> None:
    """Flower's simulation, with a Ray worker a core."""
    import ray
    from flwr import simulation as flower

    config = federation.config
    workers = config.runtime.workers
    assert workers is not None  # settled
    gpus = _gpu_share(config, workers)
    if ray.is_initialized():  # by a run before this one, with other resources
        ray.shutdown()
    try:
        connect(None, num_cpus=workers)  # it takes what runs, and ends it
    except SimulationError as error:
        raise ConfigError(str(error)) from error
    flower.run_simulation(
        server.build(federation),
        client_app or clients.build(config),
        num_supernodes=config.clients.count,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": gpus},
        },
    )
