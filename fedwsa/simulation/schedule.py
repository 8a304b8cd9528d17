"""Which clients go together to a worker."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

LEVELS = (0.6, 0.3, 0.1)
"""Shares of the work that are given out in turn.

Each share is cut into a job per worker. The large ones keep the number of jobs small (each
answers with a whole model where replies are averaged); the small ones at the end go to whoever
is free first, so that no worker waits long for another. Which clients make up a job follows
from their work alone, never from the clock, so that sums repeat to the bit.
"""


def plan(
    work: Sequence[float], workers: int, kinds: Sequence[int] | None = None
) -> list[list[int]]:
    """Jobs, in the order in which they are to be given out.

    Parameters
    ----------
    work
        What each client has to do, in any unit.
    workers
        How many workers there are.
    kinds
        What may not be mixed in a job, a number for each client: a job that is averaged holds
        models of one size. None: all may be.

    Returns
    -------
    list of list of int
        The clients of each job, as indices into ``work``, ascending. The longest clients are in
        the first jobs; within a share the longest goes to the job that has least.
    """
    order = sorted(range(len(work)), key=lambda i: (-work[i], i))
    total, done, until, start = float(sum(work)), 0.0, 0.0, 0
    jobs: list[list[int]] = []
    for level in LEVELS:
        until += level
        end = start
        while end < len(order) and (done < until * total * (1 - 1e-9) or level == LEVELS[-1]):
            done += work[order[end]]
            end += 1
        level_jobs = _longest_first(order[start:end], work, workers)
        jobs += level_jobs if kinds is None else _unmixed(level_jobs, work, kinds)
        start = end
    return jobs


def _unmixed(
    jobs: Sequence[Sequence[int]], work: Sequence[float], kinds: Sequence[int]
) -> list[list[int]]:
    """The jobs cut by kind, those with most work first."""
    parts = [[i for i in job if kinds[i] == kind] for job in jobs for kind in sorted(set(kinds))]
    return sorted(filter(None, parts), key=lambda part: -sum(work[i] for i in part))


def _longest_first(order: Sequence[int], work: Sequence[float], workers: int) -> list[list[int]]:
    loads = [(0.0, i) for i in range(workers)]
    bins: list[list[int]] = [[] for _ in range(workers)]
    for client in order:
        load, i = heapq.heappop(loads)
        bins[i].append(client)
        heapq.heappush(loads, (load + work[client], i))
    return [sorted(b) for b in bins if b]
