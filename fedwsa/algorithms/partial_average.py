"""The weighted mean of replies, of which each worker makes a part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedwsa.algorithms.guard.replies import (
    Rules,
    asks_beside,
    unusable_reply,
    unusable_stack,
)
from fedwsa.algorithms.sizes.overlap import by_row
from fedwsa.simulation.cohort import CohortReply
from fedwsa.wire import messages
from fedwsa.wire.content import find_record
from fedwsa.wire.names import CLASS_ROWS, CLASSES


@dataclass(frozen=True)
class WeightedMean:
    """Averaging by a metric of the replies (:class:`fedwsa.simulation.reduce.Reduction`).

    Attributes
    ----------
    rules : Rules
        What each reply must have, the metric by which it is weighted among it.
    """

    rules: Rules

    def begin(self) -> PartialAverage:
        """An average of nothing yet."""
        return PartialAverage(self.rules)


class PartialAverage:
    """The weighted average of the replies that were added.

    x̄ = Σ w_k x_k / Σ w_k of arrays and of metrics, element by element; the weight itself is
    summed, so that averaging partial averages by it gives the average of all. Rows of a
    classifier are averaged over the clients that have the class, as the message asks for it;
    the average of what they say, ``classes``, is the share of the weight that a row has.
    """

    def __init__(self, rules: Rules) -> None:
        self._by = rules
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._metrics: dict[str, np.ndarray] = {}
        self._rows: dict[str, Tensor] = {}  # Σ w of each row, where some lack a class
        self._total: float = 0
        self._names: tuple[str, str] | None = None

    def add(self, content: RecordDict, sent: RecordDict) -> str | None:
        """Add a reply to what was sent; or say why it cannot be averaged, and leave it out."""
        by = self._by
        if problem := unusable_reply(content, sent, by):
            return problem
        if len(messages.array_records(content)) != 1:
            return "the reply must hold exactly one ArrayRecord"
        [(arrays_name, arrays)] = messages.array_records(content).items()
        [(metrics_name, metrics)] = messages.metric_records(content).items()
        values = {k: np.asarray(v, np.float64) for k, v in metrics.items() if k != by.weight}
        if self._names is None:
            self._begin((arrays_name, metrics_name), messages.to_tensors(arrays))
            self._metrics = {k: np.zeros_like(v) for k, v in values.items()}
        shapes = {k: v.shape for k, v in values.items()}
        if shapes != {k: v.shape for k, v in self._metrics.items()}:
            return _other_metrics(shapes)
        weight = messages.number(metrics, by.weight)
        raw = metrics[by.weight]
        self._total += raw if isinstance(raw, int) else weight
        for key, value in values.items():
            self._metrics[key] += weight * value
        tensors = messages.to_tensors(arrays)
        sums = [self._sums[k] for k in tensors]
        added = [t.to(s.device, s.dtype) for t, s in zip(tensors.values(), sums, strict=True)]
        rows = find_record(sent, CLASS_ROWS)
        if rows is not None and CLASSES in values:
            held = torch.from_numpy(values[CLASSES])
            for name in rows[CLASS_ROWS]:
                place = list(tensors).index(str(name))
                added[place] = added[place] * by_row(held, added[place]).to(added[place].dtype)
                total = self._rows.get(str(name), torch.zeros_like(held))
                self._rows[str(name)] = total + weight * held
        torch._foreach_add_(sums, added, alpha=weight)
        return None

    def add_stack(self, stack: CohortReply, sent: RecordDict) -> list[str | None]:
        """Add the replies of several clients; those that cannot be averaged are left out.

        The sum over a stack is a product with the weights, where it lies.
        """
        by = self._by
        if asks_beside(sent, by):
            return [self.add(stack.content(k), sent) for k in range(len(stack))]
        problems = unusable_stack(stack, sent, by)
        values = [
            {k: np.asarray(v, np.float64) for k, v in said.items() if k != by.weight}
            for said in stack.metrics
        ]
        usable = [k for k, problem in enumerate(problems) if problem is None]
        if usable and self._names is None:
            first = {name: tensor[0] for name, tensor in stack.arrays.items()}
            self._begin((stack.arrays_name, stack.metrics_name), first)
            self._metrics = {k: np.zeros_like(v) for k, v in values[usable[0]].items()}
        expected = {k: v.shape for k, v in self._metrics.items()}
        for k in usable:
            shapes = {name: v.shape for name, v in values[k].items()}
            if shapes != expected:
                problems[k] = _other_metrics(shapes)
        usable = [k for k in usable if problems[k] is None]
        if not usable:
            return problems
        raw = [stack.metrics[k][by.weight] for k in usable]
        weights = np.array(raw, dtype=np.float64)
        self._total += sum(raw) if all(isinstance(n, int) for n in raw) else float(weights.sum())
        for key in self._metrics:
            self._metrics[key] += np.tensordot(weights, [values[k][key] for k in usable], 1)
        self._add_rows(stack.arrays, [stack.row(k) for k in usable], weights)
        return problems

    def _add_rows(
        self, arrays: Mapping[str, Tensor], rows: list[int], weights: NDArray[np.float64]
    ) -> None:
        """Add rows of stacked arrays, each times its weight."""
        for name, tensor in arrays.items():
            total = self._sums[name]
            share = torch.from_numpy(weights).to(total.device, total.dtype)
            if len(rows) == len(tensor):  # the weights change places, which are few
                share = torch.zeros_like(share).index_copy(
                    0, torch.tensor(rows, device=total.device), share
                )
            else:
                tensor = tensor[rows]
            added = tensor.reshape(len(tensor), total.numel()).to(total.device, total.dtype)
            total += (share @ added).view(total.shape)

    def _begin(self, names: tuple[str, str], tensors: dict[str, Tensor]) -> None:
        self._names = names
        for key, tensor in tensors.items():
            # Half precision adds up in single; whole numbers have a fractional mean.
            kind = tensor.dtype
            self._dtypes[key] = kind if kind.is_floating_point else torch.float64
            wide = torch.float64 if self._dtypes[key] == torch.float64 else torch.float32
            self._sums[key] = torch.zeros(tensor.shape, dtype=wide, device=tensor.device)

    def content(self) -> RecordDict | None:
        """A reply that stands for all that were added; None if none was."""
        if self._names is None:
            return None
        arrays_name, metrics_name = self._names
        # Where all have all classes, a row is averaged as everything else, to the bit.
        partial = {k: t for k, t in self._rows.items() if bool((t < self._total).any())}
        whole = [t for k, t in self._sums.items() if k not in partial]
        if whole:
            torch._foreach_div_(whole, float(self._total))
        for name, weights in partial.items():
            kept = torch.where(weights > 0, weights, 1.0).to(self._sums[name].dtype)
            self._sums[name] /= by_row(kept, self._sums[name])
        arrays = {k: t.to(self._dtypes[k]) for k, t in self._sums.items()}
        means = {k: (v / self._total).tolist() for k, v in self._metrics.items()}
        metrics = MetricRecord({self._by.weight: self._total, **means})
        return RecordDict({arrays_name: messages.to_arrays(arrays), metrics_name: metrics})


def _other_metrics(shapes: Iterable[str]) -> str:
    return f"its metrics are not those of the other clients: {', '.join(sorted(shapes))}"
