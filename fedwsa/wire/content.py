"""The content of a message as plain mappings, which know no framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Content = Mapping[str, Mapping[str, Any]]
"""The content of a message: record name → key → value."""

Records = Mapping[str, Any]
"""The same, or Flower's records, of which only single keys are looked up."""


def find_record(content: Records, key: str) -> Mapping[str, Any] | None:
    """The record that has ``key``, whatever its name; None if no record has it."""
    return next((record for record in content.values() if key in record), None)
