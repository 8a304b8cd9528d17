"""The benchmark's CNN workload on BlazeFL, with a thread or a process per core.

Run by ``experiments.bench.engine``, if BlazeFL is installed (its version 2 needs Python 3.12).
Prints the seconds of each round as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from blazefl.contrib import FedAvgBaseServerHandler
from blazefl.contrib.fedavg import (
    FedAvgDownlinkPackage,
    FedAvgProcessPoolUplinkPackage,
    FedAvgUplinkPackage,
)
from blazefl.core import (
    IPCMode,
    ProcessPoolClientTrainer,
    SHMHandle,
    ThreadPoolClientTrainer,
    deserialize_model,
    serialize_model,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.bench.shape import BATCH, CLIENTS, COHORT, SAMPLES, pool
from fedwsa.models.cnn import cnn_pfl
from fedwsa.models.inputs import ImageShape


class Models:
    """Makes the one network that there is."""

    def select_model(self, name: str) -> nn.Module:
        """The CNN."""
        return cnn_pfl(ImageShape(3, 32, 32), 10, width=1.0, depth=2)


def trained(model: nn.Module, weights: Tensor, x: Tensor, y: Tensor, device: str) -> Tensor:
    """The weights after an epoch, as BlazeFL sends them."""
    deserialize_model(model, weights)
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-5, fused=True
    )
    for batch in torch.split(torch.randperm(len(y)), BATCH):
        inputs = (x[batch].to(device).float() / 255 - 0.5) / 0.25
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(inputs), y[batch].to(device)))
        optimizer.step()
    sent: Tensor = serialize_model(model)
    return sent


class Threads(ThreadPoolClientTrainer[FedAvgUplinkPackage, FedAvgDownlinkPackage]):  # type: ignore[misc]
    """Clients in threads, each of which has a network."""

    def __init__(self, threads: int, device: str) -> None:
        self.num_parallels, self.device, self.device_count = threads, device, 1
        self.cache: list[FedAvgUplinkPackage] = []
        self.stop_event = threading.Event()
        self._pool, self._own = pool(), threading.local()

    def worker(
        self, cid: int, device: str, payload: FedAvgDownlinkPackage, stop_event: threading.Event
    ) -> FedAvgUplinkPackage:
        """Train a client."""
        if not hasattr(self._own, "model"):
            self._own.model = Models().select_model("").to(device)
        x, y = (part[cid] for part in self._pool)
        sent = trained(self._own.model, payload.model_parameters, x, y, device)
        return FedAvgUplinkPackage(cid, sent, SAMPLES)


_HELD: dict[str, Any] = {}  # what forked processes find


class Processes(
    ProcessPoolClientTrainer[FedAvgProcessPoolUplinkPackage, FedAvgDownlinkPackage, int]  # type: ignore[misc]
):
    """Clients in processes, which BlazeFL starts in each round; weights lie in shared memory."""

    def __init__(self, processes: int, device: str, folder: Path) -> None:
        self.num_parallels, self.device, self.device_count = processes, device, 1
        self.cache: list[FedAvgProcessPoolUplinkPackage] = []
        self.ipc_mode, self.share_dir = IPCMode.SHARED_MEMORY, folder
        self.stop_event = multiprocessing.Manager().Event()
        _HELD["pool"], _HELD["model"] = pool(), Models().select_model("")
        self._like = serialize_model(_HELD["model"])

    def get_client_config(self, cid: int) -> int:
        """All that a process must be told."""
        return cid

    def prepare_uplink_package_buffer(self) -> FedAvgProcessPoolUplinkPackage:
        """Where a client's weights will lie."""
        return FedAvgProcessPoolUplinkPackage(-1, self._like.clone(), SAMPLES)

    @staticmethod
    def worker(
        config: int,
        payload: FedAvgDownlinkPackage,
        device: str,
        stop_event: threading.Event,
        *,
        shm_buffer: FedAvgProcessPoolUplinkPackage,
    ) -> FedAvgProcessPoolUplinkPackage:
        """Train a client."""
        torch.set_num_threads(1)
        x, y = (part[config] for part in _HELD["pool"])
        sent = trained(_HELD["model"].to(device), payload.model_parameters, x, y, device)
        shm_buffer.model_parameters.copy_(sent)
        return FedAvgProcessPoolUplinkPackage(config, SHMHandle(), SAMPLES)


def main(kind: str, rounds: int, device: str) -> None:
    """Run one round to warm up and ``rounds`` more."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        clients = (
            Threads(cores, device) if kind == "threads" else Processes(cores, device, Path(folder))
        )
        server = FedAvgBaseServerHandler(
            Models(), "", None, rounds + 1, CLIENTS, COHORT / CLIENTS, device, BATCH, 0
        )
        ends = [time.perf_counter()]
        while not server.if_stop():
            clients.local_process(server.downlink_package(), server.sample_clients())
            for package in clients.cache:
                server.load(package)
            clients.cache = []
            ends.append(time.perf_counter())
    print(json.dumps([b - a for a, b in pairwise(ends)][1:]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
