"""Which run is which: what of a configuration makes it another run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedwsa.config.component import flat

# Keys that say where a run was made, who was told of it and how often it was looked at: what is
# learned does not depend on them. (evaluation.validation is none: clients lose those images.)
_BESIDE = (
    *("runtime.", "cache_dir", "device", "tracker", "checkpoint."),
    *("evaluation.every", "evaluation.clients_", "evaluation.batch_size"),
)
_SHOWN = 4  # differing keys that are named


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, flat, without where it was made and how often it was evaluated."""
    return {key: v for key, v in flat(config) if not key.startswith(_BESIDE)}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """In which keys two described configurations differ, in words; None: in none."""
    keys = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    absent = "absent"
    shown = [f"{k} was {there.get(k, absent)}, is {here.get(k, absent)}" for k in keys[:_SHOWN]]
    more = [f"and {len(keys) - _SHOWN} more"] if len(keys) > _SHOWN else []
    return "; ".join([*shown, *more]) or None
