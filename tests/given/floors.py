"""The modules of the project, and which folder stands on which."""

from __future__ import annotations

from pathlib import Path

from tests.given import ROOT

FLOORS = {"fedwsa": 0, "server": 1, "clients": 1, "experiments": 2}


def modules() -> list[Path]:
    found = [f for top in FLOORS for f in sorted((ROOT / top).rglob("*.py"))]
    assert len(found) > 30
    return found
