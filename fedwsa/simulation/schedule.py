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


def plan(work: Sequence[float], workers: int) -> list[list[int]]:
    """Jobs, in the order in which they are to be given out.

    Parameters
    ----------
    work
        What each client has to do, in any unit.
    workers
        How many workers there are.

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
        jobs += _longest_first(order[start:end], work, workers)
        start = end
    return jobs


def _longest_first(order: Sequence[int], work: Sequence[float], workers: int) -> list[list[int]]:
    loads = [(0.0, i) for i in range(workers)]
    bins: list[list[int]] = [[] for _ in range(workers)]
    for client in order:
        load, i = heapq.heappop(loads)
        bins[i].append(client)
        heapq.heappush(loads, (load + work[client], i))
    return [sorted(b) for b in bins if b]
