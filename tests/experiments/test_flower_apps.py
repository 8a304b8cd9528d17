"""The comparison of apps on two engines: what counts as a result."""

from __future__ import annotations

from experiments.bench.flower_apps import Played, alike, numbers

LINES = [
    "INFO :      Strategy execution finished in 20.58s",
    "INFO :      └──> Aggregated MetricRecord: {'loss': 0.25, 'v2': [1e-3, -2.5]}",
    "Round 5 -> Loss: 0.6869 | Accuracy: 53.37%",
    "port 8080 is open",
    "11/28/2026 07:45:31:INFO:accuracy 0.5",
    "INFO :      fit progress: (2, 0.75, {'accuracy': 0.125}, 12.345)",
]


def test_numbers_of_results_are_read_and_others_are_not() -> None:
    assert numbers(LINES) == [0.25, 0.001, -2.5, 5.0, 0.6869, 53.37, 0.5, 2.0, 0.75, 0.125]


def test_alike_is_as_many_numbers_of_the_same_size() -> None:
    one = Played(0, 1.0, (0.5, 2.0), "")
    assert alike(one, Played(0, 9.0, (0.50004, 2.0), ""))
    assert not alike(one, Played(0, 1.0, (0.5,), ""))
    assert not alike(one, Played(0, 1.0, (0.5, 2.1), ""))
    assert not alike(one, Played(0, 1.0, (0.5, float("nan")), ""))
