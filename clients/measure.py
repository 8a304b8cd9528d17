"""How many clients to train at once: measured, since it depends on the model and the machine."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from clients.cohort import fits, train_stack, why_not
from clients.footprint import room_for
from clients.received import named_objectives
from clients.stack import Stack
from clients.stacking import Stacking, stacking
from clients.training import Samples, train
from fedwsa.data.federated import FederatedData
from fedwsa.fleet.devices import resolve_device
from fedwsa.models import build_model
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.config import Config
from fedwsa.schema.sections import Local

COUNTS = (16, 64, 128)
"""Numbers of clients that are tried."""

_STEPS = 3
_FASTER = 1.3  # a smaller gain is within the noise of the clock
_LONG = 0.1  # seconds for the steps of one client: calls do not matter then, on a CPU


def choose_cohort(
    config: Config, data: FederatedData, workers: int, sizes: Sequence[str]
) -> tuple[int, str]:
    """How many clients a worker should train at once, and why.

    Only clients of one size can be; of several sizes, that of most clients is measured, and what
    is found holds for all: what a call costs is the same, and larger models gain less.

    Parameters
    ----------
    workers
        Among how many the clients of a round are shared out.
    sizes
        The size of each client.

    Returns
    -------
    int, str
        One: train them one by one. The reason is fit for a person.
    """
    [(size, count)] = Counter(sizes).most_common(1)
    of_size = "" if count == len(sizes) else f" of size {size}, which most have"
    share = math.ceil(count * config.clients.fraction / workers)
    if share < COUNTS[0]:
        plural = "" if share == 1 else "s"
        return 1, f"one by one, as a worker has only {share} client{plural} a round{of_size}"
    device = resolve_device(config.device)
    component = config.model_of(size)
    model = build_model(component, data.whole.shape, data.whole.classes, config.seed).to(device)
    found = stacking(model, data.whole.shape, data.whole.classes, config.local.largest_batch)
    if reason := why_not(config.local, named_objectives(config)) or found.reason:
        return 1, f"one by one, since {reason}"
    most = room_for(model, data.whole.shape, config.local, device, workers).most
    if most < COUNTS[0]:
        return 1, f"one by one, since no more than {most} at once fit in a worker's memory"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    try:
        alone = _alone(config, data, model, device)
        if alone > _LONG and device == "cpu":
            return 1, "one by one, since the model is too large to gain"
        times = {}
        for number in [n for n in COUNTS if n <= min(share, most)]:
            if fits([_samples(config, data, device)] * number):
                times[number] = _together(config, data, model, device, number, found)
    finally:
        torch.set_num_threads(threads)
    # The clock must not decide between equals: a run is to be the same tomorrow.
    best = 1
    for number in sorted(times, reverse=True):
        if times[number] * _FASTER < times.get(best, alone):
            best = number
    if best == 1:
        return 1, "one by one, which is about as fast as any number at once"
    gain = alone / times[best]
    return best, f"{best} at once{of_size}, measured {gain:.1f} times as fast as one by one"


def _samples(config: Config, data: FederatedData, device: str) -> Samples:
    """A few batches of the training set."""
    pool = data.whole.train
    n = min(_STEPS * config.local.batch_size, len(pool))
    inputs, labels = pool.inputs[:n].to(device), pool.labels[:n].to(device)
    return Samples(inputs, labels, data.whole.prepare, torch.Generator())


def _conditions(local: Local) -> Conditions:
    """With steps that leave the weights about where they are."""
    return replace(Conditions.usual(local), lr=1e-6, weight_decay=0.0)


def _alone(config: Config, data: FederatedData, model: nn.Module, device: str) -> float:
    """Seconds of processor time that a client's epoch takes."""
    local = config.local.model_copy(update={"epochs": 1})

    def run() -> None:
        train(model, _samples(config, data, device), local, _conditions(local), [])

    return _fastest(run, device)


def _together(
    config: Config,
    data: FederatedData,
    model: nn.Module,
    device: str,
    size: int,
    found: Stacking,
) -> float:
    """Seconds for a client, of ``size`` at once."""
    local = config.local.model_copy(update={"epochs": 1})

    def run() -> None:
        clients = [_samples(config, data, device) for _ in range(size)]
        conditions = [_conditions(local)] * size
        stack = Stack(model, size, found.padded, found.keeping, local.bf16)
        train_stack(stack, clients, local, conditions, [[]] * size)

    return _fastest(run, device) / size


def _fastest(run: Callable[[], None], device: str, times: int = 3) -> float:
    # Of this thread's processor: what else the machine does must not decide.
    clock = time.thread_time if device == "cpu" else time.perf_counter
    seconds = []
    for _ in range(times):  # the first warms up
        start = clock()
        run()
        if device != "cpu":
            torch.accelerator.synchronize()
        seconds.append(clock() - start)
        if sum(seconds) > 2 * _LONG and len(seconds) > 1:
            break
    return min(seconds)
