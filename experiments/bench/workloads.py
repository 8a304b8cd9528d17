"""The workloads of the engine's benchmark, and the apps and data that they need."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedwsa.algorithms.averaging import averaged
from fedwsa.data.examples import Examples
from fedwsa.data.images import ImageData
from fedwsa.data.loading import Source
from fedwsa.models.cnn import cnn_pfl
from fedwsa.models.inputs import ImageShape


def random_images(*, samples: int, channels: int, side: int) -> Source:
    """Noise with labels of ten classes: only its size matters."""

    def decode() -> ImageData:
        random = torch.Generator().manual_seed(0)
        shape = (samples, channels, side, side)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        labels = torch.arange(samples) % 10
        train = Examples(pixels, labels)
        return ImageData.of(train, Examples(pixels[:100].clone(), labels[:100].clone()))

    return Source(f"random-{samples}-{channels}-{side}", decode)


@dataclass(frozen=True)
class Training:
    """A federation of our apps, timed by round.

    Attributes
    ----------
    overrides : tuple of str
        Of the configuration.
    rounds : int
        How many are timed, after one that warms up.
    target : str
        What the project asks for.
    flower, ours : tuple of str
        Overrides of Flower's side alone, and of ours.
    limit : int or None
        The cohort of a stack without a framework, which is timed beside; None: it is not.
    """

    overrides: tuple[str, ...]
    rounds: int
    target: str
    flower: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    limit: int | None = None


def cnn_dry(image: ImageShape, classes: int) -> nn.Module:
    """The CNN of 1.6 million parameters without its dropout."""
    model = cnn_pfl(image, classes, width=1.0, depth=2)
    for name, module in list(model.named_children()):
        if isinstance(module, nn.Dropout):
            setattr(model, name, nn.Identity())
    return model


_NOISE = ("partition=iid", "dataset._target_=experiments.bench.workloads.random_images")
_COMMON = (
    *_NOISE,
    "clients.fraction=FRACTION",
    "strategy.args.fraction_evaluate=0.0",
    "local.epochs=1",
    "local.batch_size=10",
)


def _training(count: int, cohort: int, *others: str, rounds: int, target: str) -> Training:
    common = [o.replace("FRACTION", str(cohort / count)) for o in _COMMON]
    return Training((f"clients.count={count}", *common, *others), rounds, target)


# A client keeps a fifth for its hold-out: 63 samples leave 50 to train on, 25 leave 20.
_IMAGES = ("+dataset.samples=63000", "+dataset.channels=3", "+dataset.side=32")
_CNN = ("model=cnn_pfl", *_IMAGES)
_DRY = (
    "model._target_=experiments.bench.workloads.cnn_dry",
    "~model.width",
    "~model.depth",
    *_IMAGES,
)
_BF16 = ("local.precision=bf16", "local.channels_last=true")
TRAININGS = {
    "cnn": _training(1000, 50, *_CNN, rounds=4, target="flower ≥ 1.5, loop ≥ 0.88"),
    "cnn-bf16": replace(
        _training(1000, 50, *_CNN, *_BF16, rounds=4, target="flower in fp32 ≥ 2.3"),
        flower=("local.precision=fp32", "local.channels_last=false"),
    ),
    "cnn-bf16-both": _training(1000, 50, *_CNN, *_BF16, rounds=4, target="(for comparison)"),
    **{
        f"device-{count}{'-dropout' if wet else ''}": replace(
            _training(1000, count, *(_CNN if wet else _DRY), rounds=4, target=target),
            ours=(f"runtime.cohort={count}",),
            limit=count,
        )
        for count in (50, 200)
        for wet, target in ((False, "on a GPU: limit ≥ 0.7, flower ≥ 20"), (True, "(dropout)"))
    },
    "mlp": _training(
        500,
        500,
        *("model=mlp", "model.width=0.32", "model.depth=1"),
        *("+dataset.samples=12500", "+dataset.channels=1", "+dataset.side=8"),
        rounds=3,
        target="flower ≥ 12",
    ),
}

ECHO_CLIENTS, ECHO_PARAMETERS, ECHO_ROUNDS = 500, 1_626_442, 2


def echo_client() -> ClientApp:
    """Send back what came."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def echo_server(seconds: list[float]) -> ServerApp:
    """Rounds of FedAvg with echoing clients; notes how long each takes."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < ECHO_CLIENTS:
            time.sleep(0.05)
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=ECHO_CLIENTS)
        random = np.random.default_rng(0)
        arrays = ArrayRecord([random.standard_normal(ECHO_PARAMETERS, np.float32)])
        for number in range(1 + ECHO_ROUNDS):
            start = time.perf_counter()
            config = ConfigRecord()
            sent = averaged(strategy, strategy.configure_train(number, arrays, config, grid))
            replies = grid.send_and_receive(sent)
            averages, _ = strategy.aggregate_train(number, replies)
            assert averages is not None
            arrays = averages
            seconds.append(time.perf_counter() - start)

    return app
