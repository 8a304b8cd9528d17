"""What the guard costs: milliseconds to judge one reply of a model of 1.6 million parameters.

OMP_NUM_THREADS=1 python -m experiments.bench.guard_cost
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from rich.console import Console

from experiments.bench.timing import calls_in_turn
from fedwsa.algorithms.guard.replies import Rules, unusable_reply, update_size
from fedwsa.algorithms.wsa.instruction import REPORTED, ScopeInstruction
from fedwsa.scope.weight_scope import WeightScope
from fedwsa.wire import messages
from fedwsa.wire.names import CONFIG, NUM_EXAMPLES, SCOPE_TARGET, TRAIN_LOSS

REPEATS = 50


def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    start = {f"layer{i}.weight": 0.05 * torch.randn(400, 400) for i in range(10)}
    trained = {name: w + 0.01 * torch.randn_like(w) for name, w in start.items()}
    scope = WeightScope.measure(trained)
    records = ScopeInstruction(WeightScope.measure(start), strength=1.0).to_records()
    config, target = records[CONFIG], records[SCOPE_TARGET]
    sent = RecordDict({"arrays": messages.to_arrays(start)})
    asked = RecordDict({**sent, "config": ConfigRecord(config), SCOPE_TARGET: MetricRecord(target)})
    numbers: dict[str, Any] = {NUM_EXAMPLES: 100, TRAIN_LOSS: 1.0}
    second = (scope.variance + scope.mean.square()).tolist()
    scopes = dict(zip(REPORTED, (scope.mean.tolist(), second, [0.0] * len(start)), strict=True))
    arrays = messages.to_arrays(trained)
    encoded = ArrayRecord({name: Array(w.numpy()) for name, w in trained.items()})
    plain = RecordDict({"arrays": arrays, "metrics": MetricRecord(numbers)})
    wire = RecordDict({"arrays": encoded, "metrics": MetricRecord(numbers)})
    aligned = RecordDict({"arrays": arrays, "metrics": MetricRecord({**numbers, **scopes})})
    rules = Rules()
    cases: dict[str, Callable[[], object]] = {
        "a reply in memory": lambda: unusable_reply(plain, sent, rules),
        "a reply from the wire": lambda: unusable_reply(wire, sent, rules),
        "with scopes, which are measured": lambda: unusable_reply(aligned, asked, rules),
        "the norm of its update, in addition": lambda: update_size(plain, sent),
    }
    for name, seconds in calls_in_turn(cases, REPEATS).items():
        Console().print(f"{name}: {1000 * seconds:.2f} ms", highlight=False)


if __name__ == "__main__":
    main()
