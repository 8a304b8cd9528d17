"""What a process remembers during a run, and no longer: in another a file may have changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
_forget: list[Callable[[], None]] = []
_run: int | None = None


def in_run(most: int) -> Callable[[_Function], _Function]:
    """Remember the last ``most`` results of a function, until the process serves another run."""

    def remembering(function: _Function) -> _Function:
        remembered = lru_cache(maxsize=most)(function)
        _forget.append(remembered.cache_clear)
        return remembered  # type: ignore[return-value]

    return remembering


def enter(run: int | None) -> None:
    """Forget what was remembered in another run; None: in any."""
    global _run
    if run is None or run != _run:
        for forget in _forget:
            forget()
    _run = run
