"""What all tests share."""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # or Ray warns of a later default
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings

# Two cores shared with Ray: a time limit would measure the neighbours. The examples are the
# same in every run, so that a red test is red again when it is looked at.
settings.register_profile("fedwsa", deadline=None, derandomize=True)
settings.load_profile("fedwsa")


@pytest.fixture
def task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages be made outside a run: Flower asks who is speaking (no public setter)."""
    for name in ("run_id", "task_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
