"""What ``load_dataset`` and FederatedDataset would fetch from the Hub, made here, of that shape.

Python imports this module when it starts with the folder on its path, as apps and their workers do
under :mod:`experiments.bench.flower_apps`. A ServerApp, and each call of a ClientApp, begins with
generators that are keyed by client and round, so that an app that seeds nothing gives the same on
each engine.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import random
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

# Imported by every Python on whose path it lies, which is to pay only for what it asks.

_IMAGES = {"cifar10": ("img", (32, 32, 3)), "mnist": ("image", (28, 28))}
_CENSUS = {
    "age": (17, 90),
    "workclass": ["Private", "State-gov"],
    "fnlwgt": (10_000, 1_000_000),
    "education": ["HS-grad", "Bachelors", "Masters"],
    "education.num": (1, 16),
    "marital.status": ["Divorced", "Never-married"],
    "occupation": ["Sales", "Craft-repair"],
    "relationship": ["Husband", "Unmarried"],
    "race": ["White", "Black"],
    "sex": ["Male", "Female"],
    "capital.gain": (0, 9999),
    "capital.loss": (0, 999),
    "hours.per.week": (1, 99),
    "native.country": ["United-States", "Mexico"],
}
_TITANIC = {
    "Pclass": (1, 4),
    "Sex": ["male", "female"],
    "Age": (1, 80),
    "Siblings/Spouses Aboard": (0, 4),
    "Parents/Children Aboard": (0, 4),
    "Fare": (5, 300),
}


def made(name: str) -> Any:
    """A data set of the Hub's, by its name, as ``datasets.DatasetDict``."""
    import numpy as np
    from datasets import Dataset, DatasetDict

    draw = np.random.default_rng(0)
    for kind, (column, shape) in _IMAGES.items():
        if kind in name:
            parts = {"train": 1000, "test": 200}
            return DatasetDict({k: _images(draw, n, column, shape) for k, n in parts.items()})
    if "higgs" in name:
        parts = {"train": 2000, "test": 400}
        return DatasetDict({part: _floats(draw, count) for part, count in parts.items()})
    if "iris" in name:
        return DatasetDict(train=Dataset.from_dict(_iris(draw, name)))
    if "adult" in name:
        columns = _table(draw, 1500, _CENSUS)
        columns["income"] = [">50K" if age > 45 else "<=50K" for age in columns["age"]]
        return DatasetDict(train=Dataset.from_dict(columns))
    if "titanic" in name:
        columns = _table(draw, 800, _TITANIC)
        columns["Survived"] = [int(sex == "female") for sex in columns["Sex"]]
        titles = draw.choice(["Mr.", "Mrs.", "Miss.", "Master."], 800)
        columns["Name"] = [f"{title} Surname" for title in titles]
        columns["Age"] = [float(age) for age in columns["Age"]]
        return DatasetDict(train=Dataset.from_dict(columns))
    raise ValueError(f"no data were made for {name}")


def _images(draw: Any, count: int, column: str, shape: Sequence[int]) -> Any:
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image

    labels = draw.integers(0, 10, count)
    of_class = np.random.default_rng(1).integers(0, 255, (10, *shape))
    pixels = (of_class[labels] + draw.integers(0, 255, (count, *shape))) // 2
    names = [str(digit) for digit in range(10)]
    features = Features({column: Image(), "label": ClassLabel(names=names)})
    columns = {column: list(pixels.astype("uint8")), "label": labels.tolist()}
    return Dataset.from_dict(columns, features=features)


def _floats(draw: Any, count: int) -> Any:
    from datasets import Dataset

    inputs = draw.normal(size=(count, 28)).astype("float32")
    labels = (inputs[:, 0] + inputs[:, 1] > 0).astype("float32")
    return Dataset.from_dict({"inputs": inputs.tolist(), "label": labels.tolist()})


def _iris(draw: Any, name: str) -> dict[str, list[Any]]:
    from sklearn.datasets import load_iris

    data, target = load_iris(return_X_y=True)
    order = draw.permutation(len(data))
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width", "species"]
    if name.startswith("scikit-learn"):
        names = ["SepalLengthCm", "SepalWidthCm", "PetalLengthCm", "PetalWidthCm", "Species"]
    columns = [*data[order].T.tolist(), target[order].tolist()]
    return dict(zip(names, columns, strict=True))


def _table(draw: Any, rows: int, of: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        name: (draw.integers(*v, rows) if isinstance(v, tuple) else draw.choice(v, rows)).tolist()
        for name, v in of.items()
    }


def _load(path: str, *_: Any, split: str | None = None, **__: Any) -> Any:
    parts = made(path)
    return parts if split is None else parts[split]


def _of_hub(module: Any) -> None:
    module.load_dataset = _load


def _keyed(module: Any) -> None:
    """Let each call of a ClientApp begin with generators of its own."""
    plain = module.ClientApp.__call__

    def call(self: Any, message: Any, context: Any) -> Any:
        client = int(context.node_config.get("partition-id", 0))
        said = [record.get("server-round") for record in message.content.config_records.values()]
        _seed(client, *(int(number) for number in said if number is not None))
        return plain(self, message, context)

    module.ClientApp.__call__ = call


def _keyed_at_the_server(module: Any) -> None:
    plain = module.ServerApp.__call__

    def call(self: Any, grid: Any, context: Any) -> Any:
        _seed()
        return plain(self, grid, context)

    module.ServerApp.__call__ = call


def _seed(*key: int) -> None:
    number = sum(part * 1009**place for place, part in enumerate((1, *key)))
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].keras.utils.set_random_seed(number % 2**32)
    if "mlx.core" in sys.modules:
        sys.modules["mlx.core"].random.seed(number % 2**32)
    if "monai" in sys.modules:
        sys.modules["monai"].utils.set_determinism(number % 2**32)


class _Declared(importlib.abc.MetaPathFinder):
    """Let torchvision load beside a torch without CUDA (fedwsa/models/torchvision_loader.py)."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        for missing in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, missing):
                signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{missing}", signature)


class _After(importlib.abc.MetaPathFinder):
    """Change a module once it has been imported."""

    def __init__(self, name: str, change: Callable[[Any], None]) -> None:
        self.name, self.change = name, change

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            plain = spec.loader.exec_module

            def changed(module: ModuleType) -> None:
                plain(module)
                self.change(module)

            spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


_CHANGES = {"datasets": _of_hub, "flwr.clientapp": _keyed, "flwr.serverapp": _keyed_at_the_server}
sys.meta_path[:0] = [_Declared(), *(_After(n, change) for n, change in _CHANGES.items())]
