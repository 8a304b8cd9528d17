"""Permutation alignment by weight matching: units of a network change places to fit another's.

Exchanging the units of a hidden layer, with what they read and what reads them, keeps the
function of a network. Two networks that were trained apart have their units in other orders;
weight matching looks for the order in which their weights are most alike, and needs no data.

References
----------
Git Re-Basin, arXiv 2209.04836, section 3.2 and algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fedwsa import seeding
from fedwsa.merge import operator
from fedwsa.merge.average import average
from fedwsa.merge.states import State, is_statistic
from fedwsa.merge.wsa import rescaled, wsa
from fedwsa.models.architecture import Axis, Units
from fedwsa.scope.weight_scope import DEFAULT_FLOOR, Fusion

Permutations = Mapping[str, Tensor]
"""Group of units → int64 ``(units,)``: which unit comes to each place."""

_GAIN = 1e-9  # of the similarity, in parts of it, that is more than rounding


@operator(needs=["permutations"])
def permutation(
    models: Sequence[State],
    *,
    weights: Sequence[float] | None = None,
    permutations: Units,
    seed: NonNegativeInt = 0,
) -> dict[str, Tensor]:
    """Align all models with the first one by weight matching, then average them.

    Identical models merge to themselves, to the bit, and so do permuted copies of a network that
    weight matching sees through.

    Limitations: with more than two models each is aligned with the first, not with one another,
    so the order matters beyond the first one's place among the weights. Weight matching finds a
    local optimum. BatchNorm's statistics are averaged, which fits no network of another scale:
    re-estimate them where there are data (:mod:`fedwsa.models.batch_norm`). Aligned weights agree
    in part only, and the average still shrinks their variance; see :func:`permutation_wsa`.

    Parameters
    ----------
    models
        K states of the same names, shapes and dtypes; two of them are in memory at once, beside
        those that are aligned.
    weights
        K non-negative numbers; see :func:`fedwsa.merge.average.average`.
    permutations
        Which units may change places (:func:`fedwsa.models.architecture.units_of`).
    seed
        Draws the order in which groups of units are matched.

    Raises
    ------
    ValueError
        If a model lacks a tensor that ``permutations`` names, or weights are no weights.
    """
    return average(_aligned(models, permutations, seed), weights=weights)


def _rescaled(
    models: Sequence[State],
    *,
    weights: Sequence[float] | None = None,
    seed: NonNegativeInt = 0,
    **options: Any,
) -> list[dict[str, Tensor]]:
    """Only the map changes what a model computes; in whatever order its units stand."""
    return rescaled(models, weights=weights, **options)


@operator(needs=["permutations"], aligned=_rescaled)
def permutation_wsa(
    models: Sequence[State],
    *,
    weights: Sequence[float] | None = None,
    permutations: Units,
    seed: NonNegativeInt = 0,
    fusion: Fusion = "moments",
    layers: str | None = None,
    floor: PositiveFloat = DEFAULT_FLOOR,
) -> dict[str, Tensor]:
    """Align all models with the first one, then merge them by :func:`fedwsa.merge.wsa.wsa`.

    Scopes do not depend on the order of units, so the target is that of the models as they come.
    Identical models merge to themselves, to rounding.

    Limitations: those of :func:`permutation` and of the Gaussian map; the average's variance is
    below the fused one as far as aligned weights disagree.

    Parameters
    ----------
    models, weights, permutations, seed
        As in :func:`permutation`; scopes are fused with the same weights.
    fusion, layers, floor
        As in :func:`fedwsa.merge.wsa.wsa`.

    Raises
    ------
    ValueError
        As :func:`permutation`, or if no tensor matches ``layers``.
    """
    aligned = _aligned(models, permutations, seed)
    return wsa(aligned, weights=weights, fusion=fusion, layers=layers, floor=floor)


def _aligned(models: Sequence[State], units: Units, seed: int) -> list[State]:
    return [models[0], *(align(model, models[0], units, seed) for model in models[1:])]


def align(model: State, reference: State, units: Units, seed: int = 0) -> dict[str, Tensor]:
    """Put a model's units in the order in which its weights are most like the reference's.

    The function that the model computes stays the same.

    Parameters
    ----------
    model, reference
        States of one architecture.
    units
        Which units may change places.
    seed
        See :func:`match`.

    Raises
    ------
    ValueError
        If one of them lacks a tensor that ``units`` names.
    """
    return permuted(model, match(model, reference, units, seed), units)


def permuted(model: State, places: Permutations, units: Units) -> dict[str, Tensor]:
    """Let units change places, in all tensors that have them."""
    result = {}
    for name in model:
        tensor = model[name]
        for dimension, group in units.groups.get(name, {}).items():
            tensor = _moved(tensor, dimension, places[group], units.axis(name, dimension))
        result[name] = tensor.clone() if tensor is model[name] else tensor
    return result


def _moved(tensor: Tensor, dimension: int, order: Tensor, axis: Axis) -> Tensor:
    """The entries of units in another order."""
    parts = torch.arange(axis.parts) * (tensor.shape[dimension] // axis.parts)
    index = parts[:, None, None] + order[:, None] * axis.inner + torch.arange(axis.inner)
    return tensor.index_select(dimension, index.flatten().to(tensor.device))


@torch.no_grad()
def match(model: State, reference: State, units: Units, seed: int = 0) -> dict[str, Tensor]:
    """Weight matching: the permutations that maximise Σ ⟨reference, permuted model⟩.

    Coordinate descent: the best permutation of one group, all others given, is a linear
    assignment between its units; groups take turns, in an order drawn anew for each sweep, until
    a sweep changes nothing. Each step raises the sum, so it ends, in a local optimum.

    It is done from two beginnings, of which the better end counts. From the order as it is, the
    paper's; and from one that goes through the network once, where units are matched by those of
    their weights whose other ends are matched already: an outright copy is seen through at once.
    The second is ours, and so is that BatchNorm's statistics, which are no weights, move with
    their units without a say in the matching.

    Where the units lie in blocks, those of a GroupNorm, blocks change places as wholes and units
    within them: the assignment of blocks by what the best assignment within each pair is worth,
    which is the optimum among all permutations that the norm allows.

    Parameters
    ----------
    model, reference
        States of one architecture.
    units
        Which units may change places.
    seed
        Draws the order of the groups.

    Returns
    -------
    dict of str to Tensor
        For :func:`permuted`.

    Raises
    ------
    ValueError
        If one of them lacks a tensor that ``units`` names.
    """
    search = _Search(model, reference, units)
    found = []
    for number, start in enumerate((search.as_it_is(), search.forward())):
        random = np.random.default_rng(seeding.key(seed, "weight matching", number))
        found.append(search.climb(start, random))
    return max(found, key=lambda end: end[1])[0]


class _Search:
    """The weights of two models that are to be matched, and which units they have."""

    def __init__(self, model: State, reference: State, units: Units) -> None:
        self.units, self.names = units, units.names()
        self.model: dict[str, Tensor] = {}
        self.reference: dict[str, Tensor] = {}
        for name in units.groups:
            for kept, state, which in (
                (self.model, model, "the model"),
                (self.reference, reference, "the reference"),
            ):
                if name not in state:
                    raise ValueError(f"{which} lacks {name}, whose units may change places")
                kept[name] = state[name].detach().cpu().double()
        self.sizes = {group: self._size(group) for group in self.names}

    def _size(self, group: str) -> int:
        sizes = {
            self.units.axis(name, d).units(self.model[name].shape[d])
            for name, d in self.units.members(group)
        }
        if len(sizes) > 1:
            raise ValueError(f"{group}: its tensors have {sorted(sizes)} units")
        return sizes.pop()

    def as_it_is(self) -> dict[str, Tensor]:
        """The permutation that leaves all units where they are."""
        return {group: torch.arange(size) for group, size in self.sizes.items()}

    def forward(self) -> dict[str, Tensor]:
        """Group after group, in the network's order, by weights that read from matched units."""
        places: dict[str, Tensor] = {}
        for group in self.names:
            places[group] = self._best(group, self._similarity(group, places))[0]
        return places

    def climb(
        self, places: dict[str, Tensor], random: np.random.Generator
    ) -> tuple[dict[str, Tensor], float]:
        """Coordinate descent from a beginning: where it ends, and the similarity there."""
        changed = True
        while changed:
            changed = False
            for i in random.permutation(len(self.names)):
                group = self.names[i]
                similar = self._similarity(group, places)
                best, value = self._best(group, similar)
                now = float(similar[np.arange(len(similar)), places[group].numpy()].sum())
                if value > now + _GAIN * abs(now):
                    places[group], changed = best, True
        return places, self._total(places)

    def _similarity(self, group: str, places: Permutations) -> NDArray[np.float64]:
        """Reference unit i and model unit j: ⟨w_i, w_j⟩ over all their weights, ``(n, n)``.

        Weights between the group and one that has no places yet do not count.
        """
        total = torch.zeros(self.sizes[group], self.sizes[group], dtype=torch.float64)
        for name, dimension in self.units.members(group):
            if is_statistic(name):
                continue
            tensor, others = self.model[name], dict(self.units.groups[name])
            del others[dimension]
            if not places.keys() >= set(others.values()):
                continue
            for d, other in others.items():
                tensor = _moved(tensor, d, places[other], self.units.axis(name, d))
            axis = self.units.axis(name, dimension)
            rows = [_rows(t, dimension, axis) for t in (self.reference[name], tensor)]
            total.addmm_(rows[0], rows[1].T)
        return total.numpy()

    def _best(self, group: str, similar: NDArray[np.float64]) -> tuple[Tensor, float]:
        """The best permutation of a group that its norms allow, and its similarity."""
        blocks = self.units.blocks.get(group, 1)
        size = len(similar) // blocks
        within = np.empty((blocks, blocks, size), dtype=np.int64)
        worth = np.empty((blocks, blocks))
        for i in range(blocks):
            for j in range(blocks):
                part = similar[i * size : (i + 1) * size, j * size : (j + 1) * size]
                rows, within[i, j] = linear_sum_assignment(part, maximize=True)
                worth[i, j] = part[rows, within[i, j]].sum()
        to, fro = linear_sum_assignment(worth, maximize=True)
        order = np.concatenate([j * size + within[i, j] for i, j in zip(to, fro, strict=True)])
        return torch.from_numpy(order), float(worth[to, fro].sum())

    def _total(self, places: Permutations) -> float:
        """Σ ⟨reference, permuted model⟩ over all weights that have units."""
        moved = permuted(self.model, places, self.units)
        counted = [name for name in moved if not is_statistic(name)]
        return float(sum((self.reference[n] * moved[n]).sum() for n in counted))


def _rows(tensor: Tensor, dimension: int, axis: Axis) -> Tensor:
    """A row of entries for each unit, ``(units, entries)``."""
    units = axis.units(tensor.shape[dimension])
    moved = tensor.movedim(dimension, 0)
    inner = axis.inner * math.prod(moved.shape[1:])  # of an empty tensor -1 would not say it
    return (
        moved.reshape(axis.parts, units, inner).transpose(0, 1).reshape(units, axis.parts * inner)
    )
