"""Messages and answers for a guard."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import strategies as st

from fedwsa.algorithms.guard.guard import Guard
from tests.given.fedwsa import Nodes

START = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}


def record(values: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({k: Array(v) for k, v in values.items()})


def asked(guard: Guard, nodes: int = 3, start: ArrayRecord | None = None) -> list[Message]:
    arrays = record(START) if start is None else start
    sent = guard.configure_train(1, arrays, ConfigRecord(), Nodes(nodes))
    sent.sort(key=lambda m: m.metadata.dst_node_id)  # Flower samples in any order
    return sent


def reply(message: Message, value: float = 1.0, examples: Any = 1, **metrics: Any) -> Message:
    arrays = {k: np.full_like(v, value) for k, v in START.items()}
    content = {"arrays": record(arrays), "metrics": MetricRecord({"num-examples": examples})}
    content["metrics"].update({"loss": 0.5, **metrics})
    return Message(RecordDict(content), reply_to=message)


def filled(shape: tuple[int, ...], dtype: str, fill: float) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.full(shape, fill).astype(dtype)


dtypes = st.sampled_from(["float32", "float32", "float32", "float64", "float16", "int64", "bool"])


values = st.builds(
    filled,
    st.sampled_from([(2, 3), (2, 3), (2,), (0,), ()]),
    dtypes,
    st.sampled_from([0.0, 1.0, -2.0, math.nan, math.inf, 3e38, 1e20, 1e-40]),
)
