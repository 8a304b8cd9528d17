"""Attacks by what is learned: honest training on examples that are none."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedwsa.algorithms.attacks.attack import DataAttack
from fedwsa.data.examples import Examples


class LabelFlip(DataAttack):
    """Learn that class c is class C − 1 − c, each of C.

    Notes
    -----
    Source: arXiv 1911.11815, section 4.1.
    """

    def poison(self, own: Examples, classes: int, random: torch.Generator) -> Examples:
        """The same inputs, the labels mirrored."""
        return replace(own, labels=classes - 1 - own.labels)
