"""Ray: starting it on this machine alone, or joining a cluster that runs."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from inspect import signature
from typing import Any
from unittest.mock import patch

# Ray is imported after keep_local(): importing it reads what that has set.

logger = logging.getLogger("fedwsa")

_PATIENCE = 5.0  # seconds for an address to answer, and for Ray until it is asked as it likes
_SOON = 0.02  # seconds between looks


class SimulationError(ValueError):
    """The simulation cannot start; the message is one line, fit for a person."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS gives a process all of them


def keep_local() -> None:
    """Make Ray listen on 127.0.0.1 only: a simulation is nobody else's business.

    Before Ray is imported, which reads the variable once.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def connect(address: str | None, launched: Callable[[], None] = lambda: None, **init: Any) -> bool:
    """Start Ray, or join a cluster, unless this process has done so already.

    On one machine Ray listens on 127.0.0.1 only; its own default is every address.

    Parameters
    ----------
    address
        ``auto`` or ``HOST:PORT`` of a cluster; None: start Ray on this machine.
    launched
        Called when Ray's processes have been launched here, and all that is left is to wait.
    **init
        Arguments of ``ray.init``.

    Returns
    -------
    bool
        Whether Ray was started or joined here, and is to be shut down by the caller.

    Raises
    ------
    SimulationError
        If nobody answers at the address, or Ray does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        if "ray" in sys.modules and "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ:
            logger.warning(
                "Ray was imported before, so it will listen on all addresses of this machine; "
                "set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 to keep it to 127.0.0.1"
            )
        keep_local()
    elif address != "auto":
        _knock(address)
    import ray

    if ray.is_initialized():
        return False
    init = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR", **init}
    if address is not None:
        init = {"address": address, **{k: v for k, v in init.items() if k in _JOINING}}
    else:  # without "local" Ray would join whatever cluster runs on this machine
        init = {"address": "local", "num_cpus": cores(), **_place_of_files(), **init}
    # Not catch_warnings: in a thread it would put back filters that others have set meanwhile.
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    try:
        with (
            _as_before(address is None),
            _lean(init, launched) if address is None else nullcontext(),
        ):
            ray.init(**init)
    except Exception as error:  # of many kinds, of its own and of others
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        if address is None:
            raise SimulationError(f"Ray does not start: {line}") from error
        raise SimulationError(f"address={address}: no Ray cluster: {line}") from None
    return True


@contextmanager
def _as_before(local: bool) -> Iterator[None]:
    """Around Ray's start: it finds the modules that we do, and our signals stay ours.

    A handler of Ray's below Python would print a stack trace at SIGTERM, and abort what takes
    longer than three seconds to end.
    """
    from ray._private import ray_constants

    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    paths = os.environ.get("PYTHONPATH")
    if local:
        os.environ["PYTHONPATH"] = os.pathsep.join(search_path())
    below = patch.object(ray_constants, "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", True, create=True)
    try:
        with below:
            yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
        if local and paths is None:
            del os.environ["PYTHONPATH"]
        elif local and paths is not None:
            os.environ["PYTHONPATH"] = paths


@contextmanager
def _lean(init: Mapping[str, Any], launched: Callable[[], None]) -> Iterator[None]:
    """Around the start of a Ray of one machine: without programs that nobody asks anything.

    The autoscaler's monitor, the dashboard's server, and the reader of the workers' logs where
    these are not shown: each is a Python of its own, together a third of what the start takes. And
    Ray looks once a second whether its node is up. It has the switches, but no public way to them;
    one that has them no more starts as it always does.
    """
    from ray._private import node, parameter, services

    usual = parameter.RayParams
    wanted = {"no_monitor": True, "include_log_monitor": bool(init["log_to_driver"])}
    known = wanted.keys() <= signature(usual).parameters.keys()
    if not known or not hasattr(node.Node, "start_api_server"):
        yield
        return

    def lean(*words: Any, **named: Any) -> Any:
        return usual(*words, **{**named, **wanted})

    with patch.object(parameter, "RayParams", lean), ExitStack() as more:
        if not init["include_dashboard"]:
            more.enter_context(patch.object(node.Node, "start_api_server", lambda *_, **__: None))
        if hasattr(services, "get_node"):
            prompt = _once_up(services.get_node, launched)
            more.enter_context(patch.object(services, "get_node", prompt))
        yield


def _once_up(
    get_node: Callable[[str, str], Any], launched: Callable[[], None]
) -> Callable[[str, str], Any]:
    """Ray's function that waits for a node, called when the node is there."""
    from ray._private.services import _get_gcs_client_options
    from ray._private.state import GlobalState

    def called(address: str, node: str) -> Any:
        launched()
        state = GlobalState()  # type: ignore[no-untyped-call]
        options = _get_gcs_client_options(address)  # type: ignore[no-untyped-call]
        state._initialize_global_state(options)  # type: ignore[no-untyped-call]
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            nodes = state.node_table()  # type: ignore[no-untyped-call]
            if any(known["NodeID"] == node for known in nodes):
                break
            time.sleep(_SOON)
        return get_node(address, node)

    return called


def search_path() -> list[str]:
    """Where this process finds modules, for processes that may be elsewhere."""
    return [os.path.abspath(p) for p in sys.path if isinstance(p, str)]


_LONGEST_PLACE = 40  # bytes: Ray adds 66 for a socket, whose path Linux limits to 107


def _place_of_files() -> dict[str, str]:
    """Ray's folder, where the one for temporary files is none in which it could work."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if not (place := os.environ.get(name)):
            continue
        if len(os.fsencode(place)) > _LONGEST_PLACE:
            why = "is too long for Ray's sockets"
        elif not re.fullmatch(r"/[\w./+@=-]*", place):
            why = "is not a path that Ray can pass on"
        elif not (os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)):
            why = "is no folder to write in"
        else:
            return {}
        if not os.access("/tmp", os.W_OK | os.X_OK):
            raise SimulationError(f"{name}={place} {why}, and /tmp is none to write in")
        logger.info("%s=%s %s: Ray's files go to /tmp/ray", name, place, why)
        return {"_temp_dir": "/tmp/ray"}
    return {}


_JOINING = ("log_to_driver", "logging_level", "runtime_env", "namespace")


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise SimulationError(f"address={address}: must be auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise SimulationError(
            f"address={address}: nobody answers there ({error}); "
            "start a cluster with: ray start --head"
        ) from None


def places(cpus: float, gpus: float) -> int:
    """How many workers fit, each with so many CPUs and GPUs, over all nodes."""
    import ray

    total = 0
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        has = node["Resources"] if node["Alive"] else {}
        fit = int(has.get("CPU", 0) / cpus + 1e-9)
        if gpus:
            fit = min(fit, int(has.get("GPU", 0) / gpus + 1e-9))
        total += fit
    return total


def count_workers(wanted: int | None, gpus: float, cpus: float = 1.0) -> int:
    """How many workers to start.

    Raises
    ------
    SimulationError
        If not even one fits.
    """
    fit = places(cpus, gpus)
    if fit < 1:
        need = f" with {gpus:g} of a GPU each" if gpus else ""
        need += f" with {cpus:g} CPUs" if cpus != 1 else ""
        raise SimulationError(f"Ray has no place for a worker{need}")
    if wanted is not None and wanted > fit:
        what = f"places with {gpus:g} of a GPU" if gpus else "cores"
        logger.warning(
            "%d workers asked for, but there are %d %s: using %d", wanted, fit, what, fit
        )
    return min(wanted or fit, fit)
