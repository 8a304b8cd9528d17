"""The test set of data that come in one piece."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedwsa import seeding
from fedwsa.config.component import ConfigError
from fedwsa.data.examples import Examples

TestShare = Annotated[float, Field(gt=0, lt=1)]


def held_out(strata: Tensor, share: float) -> Tensor:
    """Which samples are for the test: a share of each stratum, drawn once for all runs.

    Of N samples ⌊share·N⌋; of each stratum as many as its share says, to within one.

    Parameters
    ----------
    strata
        int64, shape ``(N,)``: the natural client of each sample, or its label.

    Returns
    -------
    Tensor
        bool, shape ``(N,)``.
    """
    shuffled = torch.randperm(len(strata), generator=seeding.generator(0, "test"))
    order = shuffled[strata[shuffled].argsort(stable=True)]
    # Every 1/share-th sample along the strata.
    passed = (torch.arange(len(strata) + 1, dtype=torch.float64) * share).floor()
    chosen = torch.zeros(len(strata), dtype=torch.bool)
    chosen[order[passed.diff() > 0]] = True
    return chosen


def in_two(whole: Examples, share: float) -> tuple[Examples, Examples]:
    """Training and test set of examples; each natural client's are split, where there are any.

    Raises
    ------
    ConfigError
        If one of the two would be empty.
    """
    chosen = held_out(whole.strata, share)
    train, test = whole[~chosen], whole[chosen]
    if not len(train) or not len(test):
        raise ConfigError(f"dataset.test={share}: too little of {len(whole)} examples")
    return train, test
