"""Somebody's parts of a run, each of which fails at a place that is named to it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from torch import Tensor, nn

from fedwsa.algorithms.objective import LocalRun, Objective, Weights
from fedwsa.data.examples import Examples
from fedwsa.data.images import ImageData
from fedwsa.data.loading import Source
from fedwsa.learngene.base import Method
from fedwsa.wire.content import Content
from server.callbacks.tracker import Tracker


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("this one cannot even say what it is")


def fail(how: str) -> None:
    """Raise the error of that name."""
    if how == "exit":
        sys.exit(0)
    errors: dict[str, BaseException] = {
        "plain": RuntimeError("my bug"),
        "value": ValueError("my bug"),
        "file": FileNotFoundError(2, "No such file or directory", "my.txt"),
        "empty": RuntimeError(),
        "lines": RuntimeError("my\n\n  bug"),
        "group": ExceptionGroup("two", [ValueError("my bug"), KeyError("x")]),
        "system": SystemExit("my bug"),
        "interrupt": KeyboardInterrupt(),
        "stop": StopIteration(),
        "unspeakable": Unspeakable(),
    }
    raise errors[how]


class Net(nn.Module):
    def __init__(self, image: tuple[int, ...], classes: int, at: str, how: str) -> None:
        super().__init__()
        self.at, self.how, self.scored = at, how, 0
        if at == "init":
            fail(how)
        self.head = nn.Linear(image[0] * image[1] * image[2], classes)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.at == "forward":
            fail(self.how)
        if self.at == "training" and self.training and len(inputs) > 2:
            fail(self.how)
        if self.at == "evaluation" and not self.training and len(inputs) > 2:
            fail(self.how)
        return self.head(inputs.flatten(1))

    def named_parameters(self, *given: Any, **named: Any) -> Iterator[tuple[str, nn.Parameter]]:
        if self.at == "named_parameters":
            fail(self.how)
        return super().named_parameters(*given, **named)

    def state_dict(self, *given: Any, **named: Any) -> Any:
        if self.at == "state_dict":
            fail(self.how)
        return super().state_dict(*given, **named)

    def __deepcopy__(self, memo: Any) -> nn.Module:
        if self.at == "deepcopy":
            fail(self.how)
        return Net((1, 2, 2), 2, "", "")

    def _apply(self, *given: Any, **named: Any) -> Any:
        if self.at == "to":
            fail(self.how)
        return super()._apply(*given, **named)


def net(image: tuple[int, ...], classes: int, *, at: str = "", how: str = "plain") -> nn.Module:
    if at == "builder":
        fail(how)
    return Net(image, classes, at, how)


def source(*, at: str = "", how: str = "plain") -> Source:
    if at == "source":
        fail(how)

    def decode() -> ImageData:
        if at == "decode":
            fail(how)
        labels = torch.arange(40) % 2
        images = (labels * 200).to(torch.uint8)[:, None, None, None].expand(40, 1, 2, 2)
        data = Examples(images.contiguous(), labels)
        return ImageData.of(data, data)

    return Source(f"failing-{at}-{how}", decode)


def partition(
    labels: NDArray[np.int64], clients: int, seed: int, *, at: str = "", how: str = "plain"
) -> Iterable[NDArray[np.int64]]:
    if at == "partition":
        fail(how)

    def shares() -> Iterator[NDArray[np.int64]]:
        for share in np.array_split(np.arange(len(labels)), clients):
            if at == "shares":
                fail(how)
            yield share

    return shares()


class Skew:
    def __init__(self, *, at: str = "", how: str = "plain") -> None:
        self.at, self.how = at, how

    def draw(self, random: np.random.Generator) -> dict[str, float]:
        if self.at == "draw":
            fail(self.how)
        return {"level": 1.0}

    def apply(self, pixels: Tensor, drawn: Mapping[str, float], random: torch.Generator) -> Tensor:
        if self.at == "apply":
            fail(self.how)
        return pixels


class _Objective(Objective):
    at = ""

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if self.at == "objective":
            fail("plain")

    def add_gradient(self) -> None:
        if self.at == "add_gradient":
            fail("plain")

    def end(self) -> dict[str, float | list[float]]:
        if self.at == "end":
            fail("plain")
        return {}


class AtInit(_Objective):
    at = "objective"


class AtGradient(_Objective):
    at = "add_gradient"


class AtEnd(_Objective):
    at = "end"


def merged(models: Any, *, weights: Any = None, how: str = "plain") -> Any:
    fail(how)


class Beginning(Method):
    serves = "one"

    def __init__(self, *, how: str = "plain") -> None:
        self.how = how

    def learn(self, *given: Any, **named: Any) -> Any:
        fail(self.how)

    def initialise(self, *given: Any, **named: Any) -> Any:
        fail(self.how)


class Lines(Tracker):
    def __init__(self, *, at: str = "", how: str = "plain") -> None:
        self.at, self.how = at, how
        if at == "tracker":
            fail(how)

    def on_start(self, config: Any, folder: Path) -> None:
        if self.at == "on_start":
            fail(self.how)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.at == "log":
            fail(self.how)

    def on_result(self, result: Mapping[str, Any]) -> None:
        if self.at == "on_result":
            fail(self.how)

    def on_end(self) -> None:
        if self.at == "on_end":
            fail(self.how)


HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


class Average(FedAvg):
    def __init__(self, at: str = "", how: str = "plain") -> None:
        super().__init__(min_available_nodes=1)
        self.at, self.how = at, how
        if at == "strategy":
            fail(how)

    def __getattribute__(self, name: str) -> Any:
        usual = super().__getattribute__(name)
        if name not in HOOKS:
            return usual

        def called(*given: Any, **named: Any) -> Any:
            if self.at == name:
                fail(self.how)
            return usual(*given, **named)

        return called


def fractions(labels: NDArray[np.int64], clients: int, seed: int) -> list[NDArray[np.float64]]:
    return [np.arange(k, len(labels), clients) + 0.5 for k in range(clients)]
