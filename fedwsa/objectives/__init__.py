"""Local objectives: what a client adds to its task loss, one algorithm a file.

Each is the client half of the strategy that sends the instructions for it, and does nothing
when a message has none. An objective knows no Flower: the content of a message reaches it as
a mapping of records, each a mapping of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

Content = Mapping[str, Mapping[str, Any]]
"""The content of a message: record name → key → value."""


class Objective(Protocol):
    """What a local objective offers to a training loop.

    One is made for each training, from the model that holds the received weights and the
    content of the message with the server's instructions.
    """

    def __init__(self, model: nn.Module, content: Content) -> None: ...

    def add_gradient(self) -> None:
        """Add to ``.grad`` of the model, between ``backward()`` and the optimiser's step."""

    def end(self) -> dict[str, float | list[float]]:
        """Return the metrics to report after the last step."""


def find_record(content: Content, key: str) -> Mapping[str, Any] | None:
    """The record that has ``key``, whatever its name; None if no record has it."""
    return next((record for record in content.values() if key in record), None)
