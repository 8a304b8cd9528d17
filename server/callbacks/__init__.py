"""What happens beside the algorithm: history, scopes, progress."""

from __future__ import annotations

from typing import Protocol

from server.record import RoundRecord


class Callback(Protocol):
    """Called by the server; a callback never changes what is learned."""

    def on_round(self, record: RoundRecord) -> None:
        """After each round, in its order: all that is known of it."""

    def on_end(self) -> None:
        """After the last round, or when the run stops on an error."""
