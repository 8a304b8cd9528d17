"""Merging models of one architecture: one operator a file, each a function over state dicts.

An operator is called as ``operator(models, weights=..., **options)``, where ``models`` are
mappings of names to tensors, and returns a dict of new tensors. It reads the models tensor by
tensor, so that they may be mappings that read a file at each access (``experiments.merge.files``).
What it needs beside them it names among its keyword parameters, and the caller supplies it:

================  ===============================================================================
``base``          the state that the models began with
``fishers``       for each model, the diagonal of its Fisher information, by name
                  (:mod:`fedwsa.merge.fisher_information`)
``base_fisher``   that of ``base``
``permutations``  which units of the network may change places (:mod:`fedwsa.merge.permutation`)
================  ===============================================================================

An operator that moves each model by itself before it averages has ``aligned``, a function of the
same arguments that returns the moved models.

A yaml in ``conf/merge/`` names an operator and gives its options.
"""

from __future__ import annotations

from collections.abc import Callable

from fedwsa.config.component import signature_of

NEEDS = ("base", "fishers", "base_fisher", "permutations")
"""What operators may need beside models and weights."""


def needs(operator: Callable[..., object], where: str) -> frozenset[str]:
    """Which of :data:`NEEDS` an operator has among its parameters.

    Parameters
    ----------
    where
        What named it, for messages.

    Raises
    ------
    ConfigError
        If it does not say which it has.
    """
    return frozenset(signature_of(operator, where).parameters) & frozenset(NEEDS)
