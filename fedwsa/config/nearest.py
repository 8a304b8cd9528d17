"""What somebody may have meant by a name that there is not."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

_MOST = 30  # names that a line can hold


def nearest(name: str, known: Collection[str]) -> str:
    """Those most like it, or all that there are, as the end of a line."""
    if not known:
        return "there are none"
    if close := get_close_matches(name, known, n=3):
        return f"is it {' or '.join(close)}?"
    return f"there are {', '.join(sorted(known)) if len(known) <= _MOST else len(known)}"
