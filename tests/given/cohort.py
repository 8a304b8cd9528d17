"""How the clients of a stack are trained."""

from __future__ import annotations

from fedwsa.schema.compose import compose
from fedwsa.schema.sections import Local


def settings(**changes: object) -> Local:
    return compose().local.model_copy(update={"epochs": 3, "batch_size": 4, **changes})
