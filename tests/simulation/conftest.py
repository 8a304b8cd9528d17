"""What the engine's tests share."""

from __future__ import annotations

import pytest

from fedwsa.simulation.cluster import connect


@pytest.fixture(scope="module")
def two_workers(all_cores: None) -> None:
    """One Ray for all tests of a module; the engine uses what is running."""
    connect(None, num_cpus=2)
