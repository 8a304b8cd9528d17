"""The limit: the same training in a plain PyTorch loop, on the same cores, without a framework."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from threading import Barrier

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedwsa.data.federated import open_federated
from fedwsa.data.images import ImageData
from fedwsa.models import build_model
from fedwsa.schema.config import Config

_PATIENCE = 120.0  # seconds for the other processes
_COUNT = "#"  # beside the sums: of how many samples


def loop_seconds(config: Config, rounds: int) -> list[float]:
    """Seconds of each round, after one that warms up.

    A process per core has its share of the round's clients; they share the global weights, and
    each adds up its clients' models, weighted by their samples.
    """
    processes = config.runtime.workers or 1
    data = open_federated(config.data_spec)
    model = build_model(config.model, data.whole.shape, data.whole.classes, config.seed)
    shared = _shared(model.state_dict())
    zeros = {**model.state_dict(), _COUNT: torch.zeros(())}
    sums = [_shared(zeros) for _ in range(processes)]
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(processes + 1)
    children = [
        context.Process(target=_work, args=(config, rounds + 1, i, shared, sums[i], gate))
        for i in range(processes)
    ]
    for child in children:
        child.start()
    seconds = []
    try:
        for _ in range(rounds + 1):
            gate.wait(_PATIENCE)
            start = time.perf_counter()
            gate.wait(_PATIENCE)
            total = sum(float(own[_COUNT]) for own in sums)
            for name, weight in shared.items():
                weight.copy_(torch.stack([own[name] for own in sums]).sum(0) / total)
            seconds.append(time.perf_counter() - start)
    finally:
        for child in children:
            child.join(10)
            child.terminate()
    return seconds[1:]


def _shared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: t.clone().share_memory_() for k, t in tensors.items()}  # type: ignore[no-untyped-call]


def _work(
    config: Config,
    rounds: int,
    index: int,
    shared: dict[str, Tensor],
    sums: dict[str, Tensor],
    gate: Barrier,
) -> None:
    torch.set_num_threads(1)
    local = config.local
    data = open_federated(config.data_spec)
    whole = data.whole
    assert isinstance(whole, ImageData)
    model = build_model(config.model, whole.shape, whole.classes, config.seed)
    layout = torch.channels_last if local.channels_last else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (whole.mean, whole.std))
    cohort = round(config.clients.count * config.clients.fraction)
    autocast = torch.autocast("cpu", torch.bfloat16) if local.precision == "bf16" else nullcontext()
    for number in range(rounds):
        gate.wait(_PATIENCE)
        for tensor in sums.values():
            tensor.zero_()
        for place in range(index, cohort, config.runtime.workers or 1):
            mine, _ = data.split((number * cohort + place) % config.clients.count)
            model.load_state_dict(shared)
            optimizer = torch.optim.SGD(
                model.parameters(),
                local.lr,
                local.momentum,
                weight_decay=local.weight_decay,
                fused=local.fused,
            )
            for _ in range(local.epochs):
                for batch in torch.split(mine[torch.randperm(len(mine))], local.batch_size):
                    x = (whole.train.inputs[batch].float() / 255 - mean) / std
                    x = x.contiguous(memory_format=layout)
                    optimizer.zero_grad()
                    with autocast:
                        loss = cross_entropy(model(x), whole.train.labels[batch])
                    torch.autograd.backward(loss)
                    optimizer.step()
            sums[_COUNT] += len(mine)
            for name, tensor in model.state_dict().items():
                sums[name].add_(tensor, alpha=len(mine))
        gate.wait(_PATIENCE)
