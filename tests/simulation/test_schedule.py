"""Which clients go together: everything once, the longest first, balanced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwsa.simulation.schedule import plan

WORK = st.lists(st.floats(0.1, 1000), min_size=1, max_size=60)


@given(WORK, st.integers(1, 8))
def test_every_client_is_in_one_job_and_jobs_are_few(work: list[float], workers: int) -> None:
    jobs = plan(work, workers)
    assert sorted(i for job in jobs for i in job) == list(range(len(work)))
    assert len(jobs) <= 3 * workers
    assert all(job == sorted(job) and job for job in jobs)
    assert jobs == plan(work, workers)


@given(WORK, st.integers(1, 8))
def test_giving_jobs_to_whoever_is_free_ends_close_to_the_best_possible(work, workers) -> None:
    # Graham's bound for any list of jobs: mean load + the longest job; jobs at the end are small.
    loads = [0.0] * workers
    for job in plan(work, workers):
        place = loads.index(min(loads))
        loads[place] += sum(work[i] for i in job)
    bound = sum(work) / workers + max(sum(work[i] for i in job) for job in plan(work, workers))
    assert max(loads) <= bound * (1 + 1e-9)


@given(WORK, st.integers(1, 8), st.randoms(use_true_random=False))
def test_kinds_are_not_mixed_and_the_bound_holds(work, workers, random) -> None:
    kinds = [random.randrange(3) for _ in work]
    jobs = plan(work, workers, kinds)
    assert sorted(i for job in jobs for i in job) == list(range(len(work)))
    assert all(len({kinds[i] for i in job}) == 1 for job in jobs)
    assert len(jobs) <= 3 * workers * 3
    loads = [0.0] * workers
    for job in jobs:
        loads[loads.index(min(loads))] += sum(work[i] for i in job)
    longest = max(sum(work[i] for i in job) for job in jobs)
    assert max(loads) <= (sum(work) / workers + longest) * (1 + 1e-9)


def test_three_sizes_keep_two_workers_busy_the_longest_first() -> None:
    # Four large clients are 60 % of the work: two jobs of two; then the middle, then the small.
    work, kinds = [9.0] * 4 + [3.0] * 6 + [1.0] * 6, [0] * 4 + [1] * 6 + [2] * 6
    jobs = plan(work, 2, kinds)
    assert jobs[:2] == [[0, 2], [1, 3]]
    loads = [0.0, 0.0]
    for job in jobs:
        loads[loads.index(min(loads))] += sum(work[i] for i in job)
    assert max(loads) <= sum(work) / 2 + 1


def test_equal_clients_are_shared_out_evenly() -> None:
    sizes = [len(job) for job in plan([1.0] * 100, 2)]
    assert sizes == [30, 30, 15, 15, 5, 5]


def test_the_longest_clients_are_in_the_first_jobs() -> None:
    work = [1.0] * 20 + [30.0, 20.0]
    first, second, *rest = plan(work, 2)
    # 30 and 20 are 50 of 70, above the first 60 %: a job each; the small ones follow.
    assert (first, second) == ([20], [21])
    assert sum(map(len, rest)) == 20


@pytest.mark.parametrize("workers", [1, 3])
def test_fewer_clients_than_workers_leave_workers_idle(workers: int) -> None:
    assert sorted(plan([5.0, 1.0], workers)) in ([[0], [1]], [[1], [0]])


def test_no_clients_no_jobs() -> None:
    assert plan([], 2) == []
