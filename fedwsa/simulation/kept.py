"""Workers that are left for the next run of this process."""

from __future__ import annotations

import os
import sys
from typing import Any

import ray
from ray.exceptions import RayError

_PATIENCE = 10.0  # seconds for a worker that has nothing to do to say that it lives

_waiting: list[tuple[tuple[Any, ...], Any]] = []
"""Workers without a run, each with what it must have in common with the next one's."""


def kind_of(gpus: float, cpus: float) -> tuple[Any, ...]:
    """What a worker that was started now would have: Ray's job, a share, where code is found."""
    return _session(), gpus, cpus, os.getcwd(), tuple(sys.path)


def _session() -> str:
    """Which Ray this is; jobs of two are numbered alike."""
    return str(ray.get_runtime_context().get_node_id())


def take(kind: tuple[Any, ...] | None, most: int) -> list[Any]:
    """Living workers of a kind; those of others end, as they hold the places of new ones."""
    alike = [(other, actor) for other, actor in _waiting if other == kind]
    for other, actor in _waiting:
        if other != kind and other[0] == _session():  # else they ended with their Ray
            ray.kill(actor)
    _waiting[:] = alike[most:]
    return [actor for _, actor in alike[:most] if _lives(actor)]


def _lives(actor: Any) -> bool:
    """Whether a worker has outlived the wait: its death is no client's fault."""
    try:
        return bool(ray.get(actor.ready.remote(), timeout=_PATIENCE))
    except RayError:
        ray.kill(actor)
        return False


def leave(kind: tuple[Any, ...], actor: Any) -> None:
    """Let a worker wait for the next run."""
    _waiting.append((kind, actor))
