"""What merging did to each layer, and what it brought."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from torch import Tensor

from fedwsa.data.evaluation import Score
from fedwsa.merge.states import State
from fedwsa.scope.weight_scope import WeightScope

_SINGLE = 3
"""So many models at most have columns of their own."""


def scopes(models: Sequence[State], merged: State, weights: Sequence[float] | None = None) -> Table:
    """Mean and standard deviation of each layer, of the inputs and merged.

    What is lost of σ is measured by that of the fused scope.
    """
    table = Table("layer", title="weight scopes, μ ± σ", box=None, title_justify="left")
    single = len(models) <= _SINGLE
    heads = [f"model {k}" for k in range(1, len(models) + 1)] if single else ["σ of the models"]
    for head in (*heads, "merged", "σ lost"):
        table.add_column(head, justify="right", no_wrap=True)
    for name in merged:
        try:
            own = [WeightScope.measure({name: model[name]}) for model in models]
            fused, after = WeightScope.fuse(own, weights), WeightScope.measure({name: merged[name]})
        except ValueError:  # it has no scope: no matrix and no kernel, or squares are infinite
            continue
        cells = [_cell(s) for s in own] if single else [_between(own)]
        lost = 1 - float(after.std) / float(fused.std) if float(fused.std) else 0.0
        table.add_row(name, *cells, _cell(after), f"{100 * lost:.0f} %")
    return table


def _cell(scope: WeightScope) -> str:
    return f"{float(scope.mean):+.4f} ± {float(scope.std):.4f}"


def _between(scopes: Sequence[WeightScope]) -> str:
    spreads = [float(scope.std) for scope in scopes]
    return f"{min(spreads):.4f} … {max(spreads):.4f}"


def accuracies(rows: Sequence[tuple[str, Score]]) -> Table:
    """Accuracy and loss of models and methods."""
    table = Table("", title="on the test set", box=None, title_justify="left")
    table.add_column("accuracy", justify="right")
    table.add_column("loss", justify="right")
    for name, score in rows:
        table.add_row(name, f"{score.accuracy:.4f}", f"{score.loss:.4f}")
    return table


def size(state: State) -> int:
    """Number of entries over all tensors."""
    tensors: Sequence[Tensor] = [state[name] for name in state]
    return sum(tensor.numel() for tensor in tensors)
