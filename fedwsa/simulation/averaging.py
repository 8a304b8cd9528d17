"""Averaging where the clients are: the partial average of a worker."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import MetricRecord, RecordDict
from torch import Tensor

from fedwsa import messages
from fedwsa.strategies.replies import Rules, unusable_reply


class PartialAverage:
    """The weighted average of the replies that were added.

    x̄ = Σ w_k x_k / Σ w_k of arrays and of metrics, element by element; the weight itself is
    summed, so that averaging partial averages by it gives the average of all.
    """

    def __init__(self, rules: Rules) -> None:
        self._by = rules
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._metrics: dict[str, np.ndarray] = {}
        self._lists: set[str] = set()
        self._total: float = 0
        self._names: tuple[str, str] | None = None

    def add(self, content: RecordDict, sent: RecordDict) -> str | None:
        """Add a reply to what was sent; or say why it cannot be averaged, and leave it out."""
        by = self._by
        if problem := unusable_reply(content, sent, by):
            return problem
        if len(content.array_records) != 1:
            return "the reply must hold exactly one ArrayRecord"
        [(arrays_name, arrays)] = content.array_records.items()
        [(metrics_name, metrics)] = content.metric_records.items()
        values = {k: np.asarray(v, np.float64) for k, v in metrics.items() if k != by.weight}
        if self._names is None:
            self._begin((arrays_name, metrics_name), messages.to_tensors(arrays), metrics)
            self._metrics = {k: np.zeros_like(v) for k, v in values.items()}
        shapes = {k: v.shape for k, v in values.items()}
        if shapes != {k: v.shape for k, v in self._metrics.items()}:
            return f"its metrics are not those of the other clients: {', '.join(sorted(shapes))}"
        weight = messages.number(metrics, by.weight)
        raw = metrics[by.weight]
        self._total += raw if isinstance(raw, int) else weight
        for key, value in values.items():
            self._metrics[key] += weight * value
        tensors = messages.to_tensors(arrays)
        sums = [self._sums[k] for k in tensors]
        added = [t.to(s.dtype) for t, s in zip(tensors.values(), sums, strict=True)]
        torch._foreach_add_(sums, added, alpha=weight)
        return None

    def _begin(
        self, names: tuple[str, str], tensors: dict[str, Tensor], metrics: MetricRecord
    ) -> None:
        self._names = names
        self._lists = {k for k, v in metrics.items() if isinstance(v, list)}
        for key, tensor in tensors.items():
            # Half precision adds up in single; whole numbers have a fractional mean.
            kind = tensor.dtype
            self._dtypes[key] = kind if kind.is_floating_point else torch.float64
            wide = torch.float64 if self._dtypes[key] == torch.float64 else torch.float32
            self._sums[key] = torch.zeros(tensor.shape, dtype=wide)

    def content(self) -> RecordDict | None:
        """A reply that stands for all that were added; None if none was."""
        if self._names is None:
            return None
        arrays_name, metrics_name = self._names
        torch._foreach_div_(list(self._sums.values()), float(self._total))
        arrays = {k: t.to(self._dtypes[k]) for k, t in self._sums.items()}
        means = {k: (v / self._total).tolist() for k, v in self._metrics.items()}
        metrics = MetricRecord({self._by.weight: self._total, **means})
        return RecordDict({arrays_name: messages.to_arrays(arrays), metrics_name: metrics})
