"""A ClientApp that can train many clients at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

CohortTraining = Callable[[Sequence[Message], Sequence[Context]], list[Message] | str]
"""Messages, and the contexts of their receivers → the replies.

The messages have records of the same names and kinds, and the same arrays; what else they say
may differ. A string says why these cannot be trained together, as in "their models differ"; they
are then trained one by one.
"""


class CohortApp(ClientApp):
    """A Flower ClientApp with a second way to train: several clients in one call.

    On every runtime it is a ClientApp; our engine hands it up to ``cohort`` train messages at
    once where it is asked to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.train_cohort: CohortTraining | None = None

    def cohort(self, function: CohortTraining) -> CohortTraining:
        """Register the function that trains several clients (a decorator)."""
        self.train_cohort = function
        return function
