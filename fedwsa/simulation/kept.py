"""Workers that wait for a run of this process: left by the last, or started before the first."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from fedwsa.simulation.actor import WorkerActor
from fedwsa.simulation.cluster import search_path

_PATIENCE = 10.0  # seconds for a worker that has nothing to do to say that it lives


class Kind(NamedTuple):
    """What a worker has: Ray's job, a share of the machine, and where it finds code."""

    session: str
    gpus: float
    cpus: float
    folder: str
    path: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A worker without a run.

    Attributes
    ----------
    kind : Kind
    actor : ActorHandle
    loaded : ObjectRef or None
        There once it has imported what it was told to; None: it has had a run.
    """

    kind: Kind
    actor: Any
    loaded: ObjectRef[None] | None = None

    def suits(self, kind: Kind | None) -> bool:
        """Whether one of a kind that was started now would find the same."""
        if kind is None or self.loaded is None:
            return self.kind == kind
        # What it has imported stands there still, if others have been added after it.
        path = kind.path[: len(self.kind.path)]
        return self.kind == kind._replace(path=path)


_waiting: list[_Waiting] = []


def start(gpus: float, cpus: float) -> Any:
    """A new worker with a share of a GPU and so many CPUs; on a cluster where most is free."""
    options = {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
    actor: Any = ray.remote(WorkerActor).options(**options)
    return actor.remote()


def start_early(count: int, modules: Sequence[str]) -> None:
    """Let so many workers begin to import what a run will need, while it is prepared.

    Not where there are GPUs: how many share one is not known yet.
    """
    if ray.cluster_resources().get("GPU"):  # type: ignore[no-untyped-call]
        return
    for _ in range(count):
        actor = start(0.0, 1.0)
        loaded = actor.load.remote(list(modules), search_path(), session())
        _waiting.append(_Waiting(kind_of(0.0, 1.0), actor, loaded))


def kind_of(gpus: float, cpus: float) -> Kind:
    """What a worker that was started now would have."""
    return Kind(session(), gpus, cpus, os.getcwd(), tuple(sys.path))


def session() -> str:
    """Which Ray this is, by this machine's id in it; jobs of two are numbered alike."""
    return str(ray.get_runtime_context().get_node_id())


def take(kind: Kind | None, most: int) -> list[Any]:
    """Living workers of a kind; those of others end, as they hold the places of new ones."""
    alike = [waiting for waiting in _waiting if waiting.suits(kind)]
    surplus = [waiting for waiting in alike[most:] if waiting.loaded is None]
    for other in _waiting:
        if other not in alike[:most] + surplus and other.kind.session == session():
            ray.kill(other.actor)  # else it ended with its Ray
    _waiting[:] = surplus
    return [waiting.actor for waiting in alike[:most] if _lives(waiting)]


def _lives(waiting: _Waiting) -> bool:
    """Whether a worker has outlived the wait: its death is no client's fault."""
    if waiting.loaded is not None and not ray.wait([waiting.loaded], timeout=0)[0]:
        return True  # it is at its imports
    try:
        return bool(ray.get(waiting.actor.ready.remote(), timeout=_PATIENCE))
    except RayError:
        ray.kill(waiting.actor)
        return False


def leave(kind: Kind, actor: Any) -> None:
    """Let a worker wait for the next run."""
    _waiting.append(_Waiting(kind, actor))
