"""Knowledge of a large network, from which networks of other sizes are initialised.

:data:`METHODS` has the ways to do so by name; :class:`fedwsa.learngene.base.Method` is what they
have in common. Each takes its own options by name.
"""

from __future__ import annotations

from fedwsa.learngene.base import Method
from fedwsa.learngene.expansion import LinearExpansion
from fedwsa.learngene.plain import Direct, Selection, Standard
from fedwsa.learngene.stages import Stages
from fedwsa.learngene.templates import Wave

METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (Standard, Selection, Stages, LinearExpansion, Wave, Direct)
}

__all__ = [
    "METHODS",
    "Direct",
    "LinearExpansion",
    "Method",
    "Selection",
    "Stages",
    "Standard",
    "Wave",
]
