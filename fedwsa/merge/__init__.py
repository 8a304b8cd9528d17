"""Merging models of one architecture: one operator a file, each a function over state dicts.

An operator is called as ``operator(models, weights=..., **options)``, where ``models`` are
mappings of names to tensors, and returns a dict of new tensors. It reads the models tensor by
tensor, so that they may be mappings that read a file at each access (``experiments.merge.files``).
What it needs beside them it says by :func:`operator`, and the caller supplies it by keyword:

================  ===============================================================================
``base``          the state that the models began with
``fishers``       for each model, the diagonal of its Fisher information, by name
                  (:mod:`fedwsa.merge.fisher_information`)
``base_fisher``   that of ``base``
``permutations``  which units of the network may change places (:mod:`fedwsa.merge.permutation`)
================  ===============================================================================

A function that is not marked so needs those of them that it has among its parameters.

A yaml in ``conf/merge/`` names an operator and gives its options.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Generic, ParamSpec

from torch import Tensor

from fedwsa.config.component import asked_for

NEEDS = ("base", "fishers", "base_fisher", "permutations")
"""What operators may need beside models and weights."""

Operator = Callable[..., dict[str, Tensor]]
"""Anybody's: ``(models, *, weights, **options)`` → the merged state."""

Aligned = Callable[..., list[dict[str, Tensor]]]
"""Of an operator's arguments: each model alone, moved to where it is before it is averaged."""

_P = ParamSpec("_P")


class Declared(Generic[_P]):
    """An operator that says what it needs; called, it is the function that it marks.

    Attributes
    ----------
    needs : frozenset of str
        Which of :data:`NEEDS` it is to be given.
    aligned : callable or None
        See :func:`operator`.
    """

    def __init__(
        self,
        function: Callable[_P, dict[str, Tensor]],
        needs: Collection[str],
        aligned: Aligned | None,
    ) -> None:
        functools.update_wrapper(self, function)  # so that its signature is the function's
        self._function, self.needs, self.aligned = function, frozenset(needs), aligned

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> dict[str, Tensor]:
        """Merge models, as the operator does."""
        return self._function(*args, **kwargs)

    def __reduce__(self) -> str:
        """As functions are, by name: what stands in a module under it is this."""
        return self._function.__qualname__


def operator(
    *, needs: Collection[str] = (), aligned: Aligned | None = None
) -> Callable[[Callable[_P, dict[str, Tensor]]], Declared[_P]]:
    """Mark a function as an operator, and say what others must know of it.

    Parameters
    ----------
    needs
        Which of :data:`NEEDS` it is to be given; another of its parameters that has such a name is
        an option like any.
    aligned
        Where it moves each model by itself before it averages: a function of the same arguments
        that returns the moved models.

    Raises
    ------
    ValueError
        If it needs what there is not, or does not take what it needs.

    Examples
    --------
    >>> @operator(needs=["base"])
    ... def kept(models, *, base, weights=None):
    ...     return dict(base)
    >>> sorted(needs(kept, "merge"))
    ['base']
    """

    def mark(function: Callable[_P, dict[str, Tensor]]) -> Declared[_P]:
        name = function.__name__
        if unknown := set(needs) - set(NEEDS):
            raise ValueError(f"{name} needs {sorted(unknown)}; there are {', '.join(NEEDS)}")
        if absent := set(needs) - set(asked_for(function, needs, name)):
            raise ValueError(f"{name} needs {sorted(absent)}, which it does not take")
        return Declared(function, needs, aligned)

    return mark


def needs(operator: Operator, where: str) -> frozenset[str]:
    """Which of :data:`NEEDS` an operator is to be given: what it says, else what it takes.

    Parameters
    ----------
    operator
        Its options may be bound (:func:`functools.partial`).
    where
        What named it, for messages.

    Raises
    ------
    ConfigError
        If it does not say which arguments it takes.
    """
    bare = operator
    while isinstance(bare, functools.partial):
        bare = bare.func
    if isinstance(bare, Declared):
        return bare.needs
    return frozenset(asked_for(operator, NEEDS, where))


def aligned(operator: Operator) -> Aligned | None:
    """The function by which an operator moves each model before it averages, if it says one."""
    return operator.aligned if isinstance(operator, Declared) else None
