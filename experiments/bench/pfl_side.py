"""The benchmark's CNN workload on pfl-research, a process per core.

Run by ``experiments.bench.engine`` under torchrun. Prints the seconds of each round as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import get_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.bench.shape import BATCH, CLIENTS, COHORT, pool
from fedwsa.models.cnn import cnn_pfl
from fedwsa.models.inputs import ImageShape


class Net(nn.Module):
    """The CNN with what pfl asks of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = cnn_pfl(ImageShape(3, 32, 32), 10, width=1.0, depth=2)

    def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:
        """Mean cross entropy."""
        self.train(not eval)
        return cross_entropy(self.net(x), y)

    def metrics(self, x: Tensor, y: Tensor, eval: bool = True) -> dict[str, Any]:
        """The loss again, for pfl's evaluation."""
        return {"loss": Weighted(self.loss(x, y, eval).item() * len(x), len(x))}


class Clock(TrainingProcessCallback):  # type: ignore[misc]  # pfl is an extra
    """Notes when each round ends."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        """Note the time."""
        self.ends.append(time.perf_counter())
        return False, Metrics()


def main(rounds: int) -> None:
    """Run one round to warm up and ``rounds`` more."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels, labels = pool()

    def user(i: int) -> Dataset:
        return Dataset([(pixels[i].float() / 255 - 0.5) / 0.25, labels[i]], user_id=str(i))

    data = FederatedDataset(user, get_user_sampler("minimize_reuse", list(range(CLIENTS))))
    net = Net()
    central = torch.optim.SGD(net.parameters(), 1.0)
    model = PyTorchModel(
        net, lambda p, **k: torch.optim.SGD(p, momentum=0.9, weight_decay=1e-5, **k), central
    )
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(rounds + 1, rounds + 10, COHORT, None),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=0.03),
        NNEvalHyperParams(local_batch_size=512),
        [clock],
        send_metrics_to_platform=False,
    )
    if get_ops().distributed.global_rank == 0:
        seconds = [b - a for a, b in pairwise(clock.ends)][1:]
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
