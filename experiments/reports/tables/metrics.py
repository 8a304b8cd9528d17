"""What of a run a table may show, by the names that ``--metric`` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import AfterValidator

from experiments.reports.tables.runs import Run

_LAST = 5


@dataclass(frozen=True)
class Measure:
    """How a metric is read and shown.

    Attributes
    ----------
    title : str
        Head of its column.
    read : callable
        ``(run, target) -> value``; None where the run does not have it.
    scale : float
        What the number is multiplied by to be shown: 100 for shares.
    digits : int
        Behind the point, when shown.
    to_target : bool
        Whether it needs an accuracy to reach.
    """

    title: str
    read: Callable[[Run, float | None], float | None]
    scale: float = 1.0
    digits: int = 2
    to_target: bool = False


def share_to_reach(target: float) -> float:
    """The accuracy to reach, checked.

    Raises
    ------
    ValueError
        If it is no share between 0 and 1.
    """
    if not 0 < target < 1:
        hint = f"; did you mean {target / 100:g}?" if 1 < target < 100 else ""
        raise ValueError(f"a share between 0 and 1{hint}")
    return target


def _result(key: str) -> Callable[[Run, float | None], float | None]:
    """What the result says, else the last value in the history."""

    def read(run: Run, target: float | None) -> float | None:
        if isinstance(found := run.result.get(key), (int, float)):
            return float(found)
        return next((v for v in reversed(run.column(key)) if v is not None), None)

    return read


def _last5(run: Run, target: float | None) -> float | None:
    values = [v for v in run.column("accuracy") if v is not None][-_LAST:]
    return sum(values) / len(values) if values else None


def _of_size(size: str, run: Run, target: float | None) -> float | None:
    """The mean accuracy of a size's model in the last five evaluated rounds."""
    return _mean_of_last(run.sizes.get(size, {}))


def _of_sizes(run: Run, target: float | None) -> float | None:
    """The mean over the sizes, each counted once."""
    found = [_mean_of_last(of) for of in run.sizes.values()]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if values else None


def _mean_of_last(by_round: Mapping[int, float]) -> float | None:
    values = [by_round[number] for number in sorted(by_round)][-_LAST:]
    return sum(values) / len(values) if values else None


def _drift(run: Run, target: float | None) -> float | None:
    """Mean over the layers of |σ of the averaged model / fused σ − 1|, in the last round."""
    pairs = zip(run.last_scopes("averaged_std"), run.last_scopes("fused_std"), strict=True)
    found = [abs(averaged / fused - 1) for averaged, fused in pairs if fused]
    return sum(found) / len(found) if found else None


def _client_kl(run: Run, target: float | None) -> float | None:
    """Mean over the layers of the clients' KL to the target, in the last round."""
    found = run.last_scopes("client_kl")
    return sum(found) / len(found) if found else None


def _reached(run: Run, target: float | None) -> int | None:
    """How many rounds went by until the accuracy was first at the target."""
    assert target is not None
    values = enumerate(run.column("accuracy"), start=1)
    return next((n for n, v in values if v is not None and v >= target), None)


def _rounds(run: Run, target: float | None) -> float | None:
    return None if (n := _reached(run, target)) is None else float(n)


def _sum_to_target(*keys: str) -> Callable[[Run, float | None], float | None]:
    """The sum of columns over the rounds until the target."""

    def read(run: Run, target: float | None) -> float | None:
        number = _reached(run, target)
        columns = [run.column(key)[:number] for key in keys]
        if number is None or not all(columns):
            return None
        return float(sum(v for column in columns for v in column if v is not None))

    return read


METRICS: dict[str, Measure] = {
    "accuracy": Measure("accuracy, %", _result("accuracy"), 100),
    "last5": Measure(f"accuracy, last {_LAST}, %", _last5, 100),
    "sizes": Measure(f"mean of sizes, last {_LAST}, %", _of_sizes, 100),
    "loss": Measure("loss", _result("loss"), digits=4),
    "validation": Measure("validation accuracy, %", _result("validation_accuracy"), 100),
    "client_mean": Measure("clients, %", _result("client_accuracy_mean"), 100),
    "client_std": Measure("clients' std, %", _result("client_accuracy_std"), 100),
    "client_worst10": Measure("worst 10 %, %", _result("client_accuracy_worst10"), 100),
    "client_jain": Measure("Jain index", _result("client_accuracy_jain"), digits=4),
    "adapted": Measure("clients, adapted, %", _result("adapted_accuracy_mean"), 100),
    "unseen": Measure("unseen clients, %", _result("unseen_accuracy_mean"), 100),
    "unseen_adapted": Measure("unseen, adapted, %", _result("unseen_adapted_accuracy_mean"), 100),
    "rounds_to_target": Measure("rounds to {target}", _rounds, digits=1, to_target=True),
    "bytes_to_target": Measure(
        "MB to {target}", _sum_to_target("bytes_down", "bytes_up"), 1e-6, to_target=True
    ),
    "seconds_to_target": Measure(
        "simulated s to {target}", _sum_to_target("simulated_seconds"), digits=1, to_target=True
    ),
    "drift": Measure("σ lost by averaging, %", _drift, 100),
    "client_kl": Measure("clients' KL", _client_kl, digits=4),
    "seconds": Measure("seconds", lambda run, target: run.result.get("seconds"), digits=1),
}
"""By name; beside them each size has one (:func:`measure`)."""

SIZE_METRIC = "size_"


def measure(name: str) -> Measure:
    """How a metric is read; ``size_L`` is the accuracy of the models of size L.

    Raises
    ------
    ValueError
        If there is none of that name; says which there are.
    """
    if name in METRICS:
        return METRICS[name]
    size = name.removeprefix(SIZE_METRIC)
    if size in ("", name):
        known = ", ".join(METRICS)
        raise ValueError(f"must be one of {known}, or {SIZE_METRIC}NAME, of a size")
    return Measure(f"{size}, last {_LAST}, %", partial(_of_size, size), 100)


def _known(name: str) -> str:
    measure(name)
    return name


Metric = Annotated[str, AfterValidator(_known)]
"""The name of a metric."""
